//! Records of what was decided: JSON lines in a ring, until somebody fetches them.

use crate::policy::{Action, Direction, Flow, Protocol, Verdict};
use std::collections::VecDeque;
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The newest records, and how many older ones had to give way.
#[derive(Debug)]
pub struct Ring {
    lines: VecDeque<String>,
    most: usize,
    lost: u64,
}

impl Ring {
    pub fn new(most: usize) -> Ring {
        Ring {
            lines: VecDeque::new(),
            most: most.max(1),
            lost: 0,
        }
    }

    /// True if it is the only one: whoever fetches the records then has to be told. Who was told takes all.
    pub fn push(&mut self, line: String) -> bool {
        let first = self.lines.is_empty();
        if self.lines.len() == self.most {
            self.lines.pop_front();
            self.lost += 1;
        }
        self.lines.push_back(line);
        first
    }

    /// All records, oldest first. Where older ones were lost, the first line says how many.
    pub fn take(&mut self) -> Vec<String> {
        let lost = std::mem::take(&mut self.lost);
        let gap = (lost > 0).then(|| format!("{{\"lost\":{lost}}}"));
        gap.into_iter().chain(self.lines.drain(..)).collect()
    }
}

/// One line: time (seconds since 1970), direction, protocol, address, port, name, action and rule.
pub fn line(now: SystemTime, flow: &Flow, verdict: &Verdict) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let direction = match flow.direction {
        Direction::Egress => "egress",
        Direction::Ingress => "ingress",
    };
    let protocol = match flow.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Icmp => "icmp",
    };
    let action = match verdict.action {
        Action::Allow => "allow",
        Action::Deny => "deny",
        Action::AllowIfNamed => "allow-if-named",
    };
    let mut text = format!(
        "{{\"time\":{}.{:03},\"direction\":\"{direction}\",\"protocol\":\"{protocol}\",\"address\":\"{}\"",
        since.as_secs(),
        since.subsec_millis(),
        flow.address
    );
    if let Some(port) = flow.port {
        let _ = write!(text, ",\"port\":{port}");
    }
    if let Some(name) = &flow.name {
        text.push_str(",\"name\":");
        quote(&mut text, name.as_str());
    }
    let _ = write!(text, ",\"action\":\"{action}\",\"rule\":");
    quote(&mut text, &verdict.rule);
    text.push('}');
    text
}

/// `value` as a JSON string (RFC 8259, section 7).
fn quote(text: &mut String, value: &str) {
    text.push('"');
    for letter in value.chars() {
        match letter {
            '"' | '\\' => {
                text.push('\\');
                text.push(letter);
            }
            control if (control as u32) < 0x20 => {
                let _ = write!(text, "\\u{:04x}", control as u32);
            }
            other => text.push(other),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line_of_json() {
        let flow = Flow {
            direction: Direction::Egress,
            protocol: Protocol::Tcp,
            address: "2001:db8::1".parse().unwrap(),
            port: Some(443),
            name: None,
        };
        let verdict = Verdict {
            action: Action::Deny,
            rule: "deny \"x\\y\"\n".to_owned(),
        };
        assert_eq!(
            line(UNIX_EPOCH + Duration::from_millis(1_500), &flow, &verdict),
            r#"{"time":1.500,"direction":"egress","protocol":"tcp","address":"2001:db8::1","port":443,"action":"deny","rule":"deny \"x\\y\"\u000a"}"#
        );
    }

    #[test]
    fn the_ring_keeps_the_newest_and_tells_how_many_it_lost() {
        let mut ring = Ring::new(2);
        for number in 0..5 {
            assert_eq!(ring.push(number.to_string()), number == 0);
        }
        assert_eq!(ring.take(), ["{\"lost\":3}", "3", "4"]);
        assert!(ring.take().is_empty());
        assert!(ring.push("5".to_owned()));
    }
}
