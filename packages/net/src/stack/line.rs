//! Datagrams of one flow that wait for their turn: a few, so that none becomes old.

use std::cell::RefCell;
use std::collections::VecDeque;

/// How many datagrams, and their bytes unless there is but one.
const WAITING: usize = 32;
const WAITING_BYTES: usize = 32 << 10;

/// The line of one flow. `T` is a datagram with what belongs to it.
pub struct Line<T>(RefCell<VecDeque<T>>);

impl<T> Default for Line<T> {
    fn default() -> Line<T> {
        Line(RefCell::default())
    }
}

impl<T: AsRef<[u8]>> Line<T> {
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Behind the others; false if there is no room.
    pub fn join(&self, datagram: T) -> bool {
        let mut waiting = self.0.borrow_mut();
        let bytes: usize = waiting.iter().map(|waiting| waiting.as_ref().len()).sum();
        let full = waiting.len() >= WAITING || bytes + datagram.as_ref().len() > WAITING_BYTES;
        if full && !waiting.is_empty() {
            return false;
        }
        waiting.push_back(datagram);
        true
    }

    pub fn first(&self) -> Option<T> {
        self.0.borrow_mut().pop_front()
    }

    /// It was not its turn yet.
    pub fn back(&self, datagram: T) {
        self.0.borrow_mut().push_front(datagram);
    }

    pub fn clear(&self) {
        self.0.borrow_mut().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_short_and_takes_one_of_any_size() {
        let line = Line::default();
        assert!(line.join(vec![0; 60_000]) && !line.join(vec![0; 1]));
        line.clear();
        assert!((0..WAITING).all(|n| line.join(vec![n as u8])));
        assert!(!line.join(vec![0]));
        let first = line.first().unwrap();
        assert_eq!(first, [0]);
        line.back(first);
        assert_eq!(line.first(), Some(vec![0]));
        assert!(!line.is_empty());
    }
}
