//! Which decisions about names are put on record: each, but a program that repeats itself fills no record.

use crate::policy::{Action, Name, Verdict};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How long the same decision about the same name is not put on record again.
const QUIET: Duration = Duration::from_secs(1);
/// Decisions per `QUIET` that are put on record.
const MOST: usize = 200;

#[derive(Debug, Default)]
pub struct Diary {
    since: Option<Instant>,
    told: HashSet<(Name, bool)>,
}

impl Diary {
    /// Whether `verdict` about `name` belongs on record.
    pub fn admit(&mut self, name: &Name, verdict: &Verdict, now: Instant) -> bool {
        let over = |since| now.saturating_duration_since(since) >= QUIET;
        if self.since.is_none_or(over) {
            self.since = Some(now);
            self.told.clear();
        }
        let denied = verdict.action == Action::Deny;
        self.told.len() < MOST && self.told.insert((name.clone(), denied))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_repeated_is_not_put_on_record_and_floods_are_bounded() {
        let now = Instant::now();
        let mut diary = Diary::default();
        let mut admit = |text: &str, action, now| {
            let rule = String::new();
            diary.admit(&Name::parse(text).unwrap(), &Verdict { action, rule }, now)
        };
        assert!(admit("a.example", Action::Allow, now));
        assert!(!admit("a.example", Action::Allow, now));
        assert!(admit("a.example", Action::Deny, now));
        assert!(admit("a.example", Action::Allow, now + QUIET));
        let flood =
            (0..1000).filter(|n| admit(&format!("n{n}.example"), Action::Deny, now + QUIET));
        assert_eq!(flood.count(), MOST - 1);
        assert!(admit("b.example", Action::Deny, now + 2 * QUIET));
    }
}
