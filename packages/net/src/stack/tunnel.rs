//! How much a sandbox may say to the world in the names that it asks for (N19).
//!
//! A question that goes upstream can carry data out in its name. What tells a tunnel from a program is how
//! much: many names below one domain, and long ones that look like data. Both are counted, and cost
//! nothing until they come in numbers; answers out of the cache are not counted at all.

use crate::policy::Name;
use std::collections::HashMap;
use std::time::Instant;

/// Questions of a sandbox: at once, and per second.
const ALL: Rate = Rate(500.0, 100.0);
/// Those below one registrable domain.
const DOMAIN: Rate = Rate(300.0, 10.0);
/// Bytes in labels that look like data.
const DATA: Rate = Rate(4096.0, 32.0);
/// Domains that are counted at a time.
const DOMAINS: usize = 1024;
/// A label of so many bytes may be data, if there is enough in it.
const LONG: usize = 24;
/// The entropy of its letters, in bits each: hexadecimal has 4 at most, words some 3.5, `aaaa` none.
const DENSE: f64 = 3.0;
/// So many bytes in front of a domain are data, however they are cut into labels.
const SPRAWLING: usize = 64;

/// Tokens at most, and new ones per second.
#[derive(Clone, Copy)]
struct Rate(f64, f64);

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn full(rate: Rate, at: Instant) -> Bucket {
        Bucket { tokens: rate.0, at }
    }

    fn holds(&mut self, rate: Rate, amount: f64, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + since * rate.1).min(rate.0);
        self.at = now;
        self.tokens >= amount
    }
}

pub struct Budget {
    all: Bucket,
    data: Bucket,
    domains: HashMap<Box<str>, Bucket>,
}

impl Budget {
    pub fn new(now: Instant) -> Budget {
        Budget {
            all: Bucket::full(ALL, now),
            data: Bucket::full(DATA, now),
            domains: HashMap::new(),
        }
    }

    /// Whether a question for `name` may go upstream; if not, which limit says so. A name that the policy
    /// `spells` out tells nobody anything.
    pub fn admit(&mut self, name: &Name, spells: bool, now: Instant) -> Result<(), String> {
        if !self.all.holds(ALL, 1.0, now) {
            return Err(format!(
                "limit: {} questions per second to name servers",
                ALL.1
            ));
        }
        if !spells {
            let (front, domain) = parted(name);
            let weight = data(front, domain) as f64;
            if !self.data.holds(DATA, weight, now) {
                return Err(format!(
                    "limit: {} bytes per second in names that look like data, as this one below {domain}",
                    DATA.1
                ));
            }
            if self.domains.len() >= DOMAINS && !self.domains.contains_key(domain) {
                self.forget(now);
            }
            let known = self.domains.entry(domain.into());
            let own = known.or_insert_with(|| Bucket::full(DOMAIN, now));
            if !own.holds(DOMAIN, 1.0, now) {
                return Err(format!(
                    "limit: {} questions per second below {domain}",
                    DOMAIN.1
                ));
            }
            own.tokens -= 1.0;
            self.data.tokens -= weight;
        }
        self.all.tokens -= 1.0;
        Ok(())
    }

    /// Make room: domains whose buckets are full by now, or else all.
    fn forget(&mut self, now: Instant) {
        self.domains
            .retain(|_, bucket| !bucket.holds(DOMAIN, DOMAIN.0, now));
        if self.domains.len() >= DOMAINS {
            self.domains.clear();
        }
    }
}

/// The labels in front, and the domain that somebody registered (by the public suffix list).
fn parted(name: &Name) -> (&str, &str) {
    let domain = psl::domain_str(name.as_str()).unwrap_or(name.as_str());
    let front = name.as_str().strip_suffix(domain).unwrap_or_default();
    (front.trim_end_matches('.'), domain)
}

/// How many bytes of `front` look like data.
fn data(front: &str, domain: &str) -> usize {
    if domain.ends_with("ip6.arpa") {
        // 32 labels of half a byte.
        return front.len().div_ceil(4);
    }
    if front.len() > SPRAWLING {
        return front.len();
    }
    let labels = front.split('.').map(str::as_bytes);
    let dense = labels.filter(|label| label.len() >= LONG && entropy(label) >= DENSE);
    dense.map(<[u8]>::len).sum()
}

/// Of the letters of `label`, in bits each.
fn entropy(label: &[u8]) -> f64 {
    let mut counts = [0u32; 256];
    for letter in label {
        counts[usize::from(*letter)] += 1;
    }
    let all = label.len() as f64;
    let present = counts.iter().filter(|count| **count > 0);
    let parts = present.map(|count| f64::from(*count) / all);
    parts.map(|part| -part * part.log2()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn name(text: &str) -> Name {
        Name::parse(text).expect(text)
    }

    /// A label of base32 as a tunnel makes it.
    fn encoded(n: u64) -> String {
        let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let letters = (0..50).map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            char::from(b"abcdefghijklmnopqrstuvwxyz234567"[(state >> 20) as usize % 32])
        });
        letters.collect()
    }

    #[test]
    fn n19_a_tunnel_gets_its_first_bytes_out_and_then_next_to_none() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let mut passed = 0;
        for n in 0..6000 {
            // 100 questions per second for a minute.
            let now = start + Duration::from_millis(10 * n);
            let asked = name(&format!("{}.tunnel.example", encoded(n)));
            passed += usize::from(budget.admit(&asked, false, now).is_ok());
        }
        let most = (DATA.0 + 60.0 * DATA.1) / 50.0;
        assert!((80..=most as usize + 1).contains(&passed), "{passed}");
    }

    #[test]
    fn n19_short_names_in_numbers_are_a_tunnel_too() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let ask = |budget: &mut Budget, n: u64, text: &str| {
            budget.admit(&name(text), false, start + Duration::from_millis(10 * n))
        };
        let passed =
            (0..6000).filter(|n| ask(&mut budget, *n, &format!("x{n}.tunnel.example")).is_ok());
        assert!((300..=901).contains(&passed.count()));
        // Other domains go on.
        assert_eq!(ask(&mut budget, 6000, "www.example.org"), Ok(()));
        let error = ask(&mut budget, 6000, "y.tunnel.example").unwrap_err();
        assert_eq!(error, "limit: 10 questions per second below tunnel.example");
    }

    #[test]
    fn names_of_programs_are_not_data() {
        for text in [
            "www.example.com",
            "registry-1.docker.io",
            "packages.cloud.google.com",
            "rr3---sn-4g5ednsl.googlevideo.com",
            "d111111abcdef8.cloudfront.net",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.example.com",
        ] {
            let name = name(text);
            let (front, domain) = parted(&name);
            assert_eq!(data(front, domain), 0, "{text}");
        }
        let name = name(&format!(
            "{}.{}.example.com",
            "ab".repeat(20),
            "cd".repeat(20)
        ));
        let (front, domain) = parted(&name);
        assert_eq!((data(front, domain), domain), (81, "example.com"));
    }

    #[test]
    fn what_the_policy_spells_out_is_free_but_for_the_whole() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        let asked = name(&format!("{}.example.com", encoded(1)));
        let passed = (0..1000).filter(|_| budget.admit(&asked, true, now).is_ok());
        assert_eq!(passed.count(), 500);
    }

    #[test]
    fn the_table_of_domains_is_bounded() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        for n in 0..5000 {
            let now = start + Duration::from_millis(10 * n);
            let _ = budget.admit(&name(&format!("www.d{n}.com")), false, now);
            assert!(budget.domains.len() <= DOMAINS);
        }
    }
}
