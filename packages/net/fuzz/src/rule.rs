//! Any text as a rule: one that is understood means the same once it is written out.
use microsandbox_net_native::authority::Authority;
use microsandbox_net_native::policy::{Name, Rule};

pub fn rule(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match text.parse::<Rule>() {
        Ok(rule) => assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule)),
        Err(error) => assert_eq!(error.to_string().lines().count(), 1),
    }
    if let Some(name) = Name::parse(text) {
        assert!(name.as_str().parse::<std::net::IpAddr>().is_err());
    }
    Authority::parse(text);
}
