//! What has changed and is not told yet: each name once, and of too many only where they are.

use std::collections::{HashMap, HashSet, VecDeque};

/// Most names that wait; of what comes then, the directory is told instead.
pub const MOST: usize = 1024;
/// Of one directory, so that another is still told by name.
pub const MOST_IN_ONE: usize = 512;

/// What was seen of one name since it was told last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// It was made, or moved there.
    pub appeared: bool,
    pub modified: bool,
    /// It went: removed, or moved away.
    pub gone: bool,
    /// What went was a directory.
    pub directory: bool,
    /// The first that was seen of it was that it was made: before, there was nothing of that name.
    pub fresh: bool,
}

/// What a guest is told of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Created,
    Modified,
    Attributes,
    Removed,
}

impl Seen {
    /// What is told, if anything: `now` is what is there of that name, as bits of a type and whether the
    /// guest itself was the last to change it.
    pub fn told(self, now: Option<(u32, bool)>) -> Option<Told> {
        match now {
            // It was there only between two looks.
            None if self.fresh || !self.gone => None,
            None => Some(Told::Removed),
            Some((_, true)) => None,
            Some(_) if self.appeared => Some(Told::Created),
            Some((crate::share::REGULAR, _)) if self.modified => Some(Told::Modified),
            Some(_) => Some(Told::Attributes),
        }
    }
}

/// A name in a directory, which is the number of a node.
pub type Place = (u64, Box<[u8]>);

#[derive(Default)]
pub struct Pending {
    names: HashMap<Place, Seen>,
    order: VecDeque<Place>,
    /// Names that wait, of each directory.
    counts: HashMap<u64, usize>,
    whole: HashSet<u64>,
}

impl Pending {
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.whole.is_empty()
    }

    /// Notes what was seen of `name` in `directory`.
    pub fn note(&mut self, directory: u64, name: &[u8], seen: Seen) {
        let place = (directory, Box::from(name));
        if let Some(known) = self.names.get_mut(&place) {
            known.appeared |= seen.appeared;
            known.modified |= seen.modified;
            known.gone |= seen.gone;
            known.directory |= seen.directory;
            return;
        }
        let count = self.counts.entry(directory).or_default();
        if self.names.len() < MOST && *count < MOST_IN_ONE {
            *count += 1;
            self.names.insert(place.clone(), seen);
            self.order.push_back(place);
        } else {
            if *count == 0 {
                self.counts.remove(&directory);
            }
            self.whole.insert(directory);
        }
    }

    /// Something has changed in `directory`.
    pub fn note_whole(&mut self, directory: u64) {
        self.whole.insert(directory);
    }

    /// The name that waits for longest.
    pub fn take(&mut self) -> Option<(Place, Seen)> {
        let place = self.order.pop_front()?;
        let seen = self.names.remove(&place)?;
        let count = self.counts.entry(place.0).or_default();
        *count -= 1;
        if *count == 0 {
            self.counts.remove(&place.0);
        }
        Some((place, seen))
    }

    /// A directory that is told as such, once no name waits.
    pub fn take_whole(&mut self) -> Option<u64> {
        let directory = *self.whole.iter().next().filter(|_| self.names.is_empty())?;
        self.whole.remove(&directory);
        Some(directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::{DIRECTORY, REGULAR};

    const MADE: Seen = Seen {
        appeared: true,
        modified: false,
        gone: false,
        directory: false,
        fresh: true,
    };
    const WRITTEN: Seen = Seen {
        appeared: false,
        modified: true,
        fresh: false,
        ..MADE
    };
    const GONE: Seen = Seen {
        gone: true,
        modified: false,
        ..WRITTEN
    };

    fn after(seen: &[Seen]) -> Seen {
        let mut pending = Pending::default();
        for seen in seen {
            pending.note(1, b"a", *seen);
        }
        let (place, seen) = pending.take().unwrap();
        assert_eq!((place, pending.is_empty()), ((1, Box::from(*b"a")), true));
        seen
    }

    #[test]
    fn many_changes_of_a_name_are_one() {
        let there = Some((REGULAR, false));
        assert_eq!(
            after(&[MADE, WRITTEN, WRITTEN]).told(there),
            Some(Told::Created)
        );
        assert_eq!(after(&[WRITTEN; 100]).told(there), Some(Told::Modified));
        assert_eq!(after(&[GONE, MADE]).told(there), Some(Told::Created));
        assert_eq!(after(&[WRITTEN, GONE]).told(None), Some(Told::Removed));
        assert_eq!(Seen::default().told(there), Some(Told::Attributes));
        assert_eq!(
            WRITTEN.told(Some((DIRECTORY, false))),
            Some(Told::Attributes)
        );
    }

    #[test]
    fn what_came_and_went_is_nothing() {
        assert_eq!(after(&[MADE, WRITTEN, GONE]).told(None), None);
        assert_eq!(WRITTEN.told(None), None);
    }

    #[test]
    fn what_the_guest_did_it_knows() {
        for seen in [MADE, WRITTEN, Seen::default()] {
            assert_eq!(seen.told(Some((REGULAR, true))), None);
        }
    }

    #[test]
    fn a_full_directory_leaves_room_for_another() {
        let mut pending = Pending::default();
        for number in 0..5000 {
            pending.note(1, format!("{number}").as_bytes(), MADE);
        }
        pending.note(2, b"other", WRITTEN);
        let names = std::iter::from_fn(|| pending.take());
        let last = names.last().unwrap();
        assert_eq!(last, ((2, Box::from(*b"other")), WRITTEN));
        assert_eq!(pending.take_whole(), Some(1));
        assert!(pending.is_empty());
    }

    #[test]
    fn of_too_many_names_the_directory_is_told() {
        let mut pending = Pending::default();
        for number in 0..MOST + 5000 {
            pending.note(number as u64 % 2, format!("{number}").as_bytes(), MADE);
        }
        pending.note(2, b"last", MADE);
        assert_eq!(pending.take_whole(), None);
        let mut told = 0;
        while pending.take().is_some() {
            told += 1;
        }
        assert_eq!(told, MOST);
        let mut whole: Vec<u64> = std::iter::from_fn(|| pending.take_whole()).collect();
        whole.sort_unstable();
        assert_eq!(whole, [0, 1, 2]);
        assert!(pending.is_empty());
    }
}
