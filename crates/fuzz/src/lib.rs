//! Fuzzes on a stable toolchain: inputs are drawn, those that reach something new are kept and drawn from.
//!
//! The program of each package that has targets calls [`main`]. Then
//! `fuzz [--seconds N] [--seed N] [--corpus DIR] [TARGET...]` fuzzes each target for N seconds; `fuzz TARGET
//! --input FILE` repeats one input. What was being tried when a target failed is in `failing-PACKAGE-TARGET`.

mod counters;
mod mutate;

pub use mutate::Texts;
use mutate::{mutated, Random};
use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A target's name and what it does: it takes any bytes and panics if a promise does not hold for them.
pub type Target = (&'static str, fn(&[u8]));

/// What a package fuzzes.
pub struct Package {
    pub targets: &'static [Target],
    /// What its formats are told by.
    pub texts: Texts,
    /// The directory whose `seeds/TARGET` have the inputs to begin with.
    pub home: &'static str,
}

/// No input may take longer; it is stopped and counts as a failure.
const SLOWEST: Duration = Duration::from_secs(20);
const LONGEST: usize = 64 << 10;

struct Options {
    seconds: u64,
    seed: u64,
    corpus: Option<PathBuf>,
    input: Option<PathBuf>,
    targets: Vec<Target>,
}

fn options(known: &[Target]) -> Result<Options, String> {
    let mut options = Options {
        seconds: 60,
        seed: 1,
        corpus: None,
        input: None,
        targets: Vec::new(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or(format!("{argument}: nothing follows"))
        };
        let number = |text: String| {
            text.parse()
                .map_err(|_| format!("{argument}: not a number"))
        };
        match argument.as_str() {
            "--seconds" => options.seconds = number(value()?)?,
            "--seed" => options.seed = number(value()?)?,
            "--corpus" => options.corpus = Some(value()?.into()),
            "--input" => options.input = Some(value()?.into()),
            name => options.targets.push(
                *known
                    .iter()
                    .find(|target| target.0 == name)
                    .ok_or(format!("{name}: no such target"))?,
            ),
        }
    }
    if options.targets.is_empty() {
        options.targets = known.to_vec();
    }
    Ok(options)
}

/// Do what the arguments of the program say.
pub fn main(package: &Package) {
    let options = options(package.targets).unwrap_or_else(|problem| {
        let names: Vec<_> = package.targets.iter().map(|target| target.0).collect();
        eprintln!("fuzz: {problem} (targets: {})", names.join(", "));
        std::process::exit(2);
    });
    if let Some(path) = &options.input {
        let input = read(path);
        for (_, run) in &options.targets {
            run(&input);
        }
        return;
    }
    for target in &options.targets {
        fuzz(target, package, &options);
    }
}

fn fuzz(&(name, run): &Target, package: &Package, options: &Options) {
    let mut random = Random::new(options.seed);
    let mut corpus = seeds(package.home, name, options.corpus.as_deref());
    let failing = PathBuf::from(failing(package, name));
    // Written before each run: also an input that exhausts the memory or the stack is there afterwards.
    let current = File::create(&failing).unwrap_or_else(|e| panic!("{}: {e}", failing.display()));
    let watch = Watch::new(name, failing.clone());
    let mut seen = counters::Seen::default();
    let mut known: HashSet<Vec<u8>> = corpus.iter().cloned().collect();
    let (begun, limit) = (Instant::now(), Duration::from_secs(options.seconds));
    let (mut runs, mut slowest) = (0u64, Duration::ZERO);
    let first = corpus.len();
    while begun.elapsed() < limit || runs < first as u64 {
        let input = match corpus.get(runs as usize).filter(|_| runs < first as u64) {
            Some(seed) => seed.clone(),
            None => mutated(&mut random, &corpus, package.texts, LONGEST),
        };
        current.write_all_at(&input, 0).expect("write");
        current.set_len(input.len() as u64).expect("write");
        let started = watch.begin();
        run(&input);
        slowest = slowest.max(started.elapsed());
        watch.end();
        runs += 1;
        if seen.update() && known.insert(input.clone()) {
            if let Some(directory) = &options.corpus {
                let path = directory.join(name).join(format!("{:08}", known.len()));
                std::fs::write(&path, &input).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            }
            corpus.push(input);
        }
    }
    watch.done();
    std::fs::remove_file(&failing).expect("remove");
    println!(
        "{name}: {runs} inputs in {} s, {} kept, {} places reached, the slowest took {} ms",
        begun.elapsed().as_secs(),
        corpus.len(),
        seen.places(),
        slowest.as_millis()
    );
}

/// The file with what is being tried. Packages are fuzzed beside each other, and have targets of the same name.
fn failing(package: &Package, target: &str) -> String {
    let package = Path::new(package.home).parent().and_then(Path::file_name);
    let package = package.map_or_else(String::new, |name| format!("{}-", name.to_string_lossy()));
    format!("failing-{package}{target}")
}

/// The inputs to begin with: `seeds/TARGET` of the package, and what earlier runs kept.
fn seeds(home: &str, name: &str, kept: Option<&Path>) -> Vec<Vec<u8>> {
    let mut directories = vec![Path::new(home).join("seeds").join(name)];
    if let Some(kept) = kept {
        let kept = kept.join(name);
        std::fs::create_dir_all(&kept).unwrap_or_else(|e| panic!("{}: {e}", kept.display()));
        directories.push(kept);
    }
    let mut files: Vec<PathBuf> = directories
        .iter()
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    files.sort();
    let mut all: Vec<Vec<u8>> = files.iter().map(|path| read(path)).collect();
    all.push(Vec::new());
    all
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Ends the program when one input takes too long.
struct Watch {
    /// Milliseconds from `zero` to when the current input began; `u64::MAX`: none runs.
    since: &'static AtomicU64,
    zero: Instant,
}

impl Watch {
    const NONE: u64 = u64::MAX;
    const DONE: u64 = u64::MAX - 1;

    fn new(name: &'static str, failing: PathBuf) -> Watch {
        let since: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(Watch::NONE)));
        let zero = Instant::now();
        std::thread::spawn(move || loop {
            std::thread::sleep(Duration::from_secs(1));
            let begun = match since.load(Ordering::Relaxed) {
                Watch::DONE => return,
                Watch::NONE => continue,
                begun => begun,
            };
            if zero.elapsed() > Duration::from_millis(begun) + SLOWEST {
                eprintln!(
                    "{name}: an input takes more than {} s: {}",
                    SLOWEST.as_secs(),
                    failing.display()
                );
                std::process::abort();
            }
        });
        Watch { since, zero }
    }

    fn begin(&self) -> Instant {
        let now = Instant::now();
        let since = now.duration_since(self.zero).as_millis() as u64;
        self.since.store(since, Ordering::Relaxed);
        now
    }

    fn end(&self) {
        self.since.store(Watch::NONE, Ordering::Relaxed);
    }

    fn done(&self) {
        self.since.store(Watch::DONE, Ordering::Relaxed);
    }
}
