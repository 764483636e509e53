//! How often each place of the program was executed, as the compiler counts it (`-C instrument-coverage`).
//!
//! Without that nothing counts as new, and every input is drawn from the seeds alone.

/// What inputs have reached so far.
#[derive(Default)]
pub struct Seen {
    /// For each counter the magnitudes it has had, one bit each.
    magnitudes: Vec<u8>,
}

impl Seen {
    /// Take in what was executed since the last call; true if some of it is new.
    pub fn update(&mut self) -> bool {
        let counters = counters();
        self.magnitudes.resize(counters.len(), 0);
        let mut new = false;
        for (count, seen) in counters.iter_mut().zip(&mut self.magnitudes) {
            if *count == 0 {
                continue;
            }
            let magnitude = match std::mem::take(count) {
                1 => 1,
                2 => 2,
                3 => 4,
                4..=7 => 8,
                8..=15 => 16,
                16..=31 => 32,
                32..=127 => 64,
                _ => 128,
            };
            new |= *seen & magnitude == 0;
            *seen |= magnitude;
        }
        new
    }

    /// How many places were ever executed.
    pub fn places(&self) -> usize {
        self.magnitudes.iter().filter(|&&seen| seen != 0).count()
    }
}

#[cfg(counted)]
fn counters() -> &'static mut [u64] {
    extern "C" {
        fn __llvm_profile_begin_counters() -> *mut u64;
        fn __llvm_profile_end_counters() -> *mut u64;
    }
    // SAFETY: compiler-rt's profiling runtime returns the two ends of one array, which exists as long as the
    // program and is written to by plain stores only: a store that is lost costs a count. All threads of a
    // target have ended when this is called.
    unsafe {
        let (begin, end) = (
            __llvm_profile_begin_counters(),
            __llvm_profile_end_counters(),
        );
        std::slice::from_raw_parts_mut(begin, end.offset_from(begin) as usize)
    }
}

#[cfg(not(counted))]
fn counters() -> &'static mut [u64] {
    &mut []
}
