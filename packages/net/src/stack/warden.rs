//! The gate that holds a guest to a policy: what it may reach, and what the names that it states allow.

use super::gate::Gate;
use super::synthetic::{Stand, Synthetic};
use crate::client::{decide_asked, Asked};
use crate::policy::{decide, decide_answer, Action, Flow, Name, Pins, Policy, Verdict};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Names to addresses that one sandbox may have learnt at a time.
const PINS: usize = 4096;

/// What the gate and the resolver of one sandbox share.
#[derive(Clone)]
pub struct Ward(Arc<Mutex<State>>);

pub struct State {
    pub policy: Policy,
    pub pins: Pins,
    /// Where names have addresses that stand for them.
    pub synthetic: Option<Synthetic>,
}

impl State {
    fn stand(&mut self, address: IpAddr) -> Option<&mut Stand> {
        self.synthetic.as_mut()?.stand_mut(address)
    }
}

impl Ward {
    pub fn new(policy: Policy) -> Ward {
        let pins = Pins::bounded(PINS);
        Ward(Arc::new(Mutex::new(State {
            policy,
            pins,
            synthetic: None,
        })))
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another policy from now on; names that it does not allow are forgotten.
    pub fn narrow(&self, policy: Policy) {
        let state = &mut *self.state();
        let admits = |name: &_, address| {
            let verdict = decide_answer(name, address, &policy);
            verdict.action == Action::Allow
        };
        state.pins.retain(admits);
        state.policy = policy;
    }
}

/// A gate with the policy of a ward.
pub struct Warden(pub Ward);

impl Gate for Warden {
    fn decide(&self, flow: &Flow) -> Verdict {
        let state = &mut *self.0.state();
        let synthetic = state.synthetic.as_ref();
        if let Some(verdict) = synthetic.and_then(|all| all.decide(flow, &state.policy)) {
            return verdict;
        }
        state.pins.expire(Instant::now());
        decide(flow, &state.policy, &state.pins)
    }

    fn decide_asked(&self, flow: &Flow, asked: &Asked) -> Verdict {
        let state = &mut *self.0.state();
        let synthetic = state.synthetic.as_ref();
        if let Some(verdict) =
            synthetic.and_then(|all| all.decide_asked(flow, asked, &state.policy))
        {
            return verdict;
        }
        state.pins.expire(Instant::now());
        decide_asked(flow, asked, &state.policy, &state.pins)
    }

    fn names(&self, flow: &Flow) -> Vec<Name> {
        let state = &mut *self.0.state();
        let stand = state.stand(flow.address).map(|stand| stand.name.clone());
        let State {
            policy,
            pins,
            synthetic,
        } = &*state;
        let passes = |name: &Name| {
            let name = Some(name.clone());
            let named = Flow {
                name,
                ..flow.clone()
            };
            let stood_for = synthetic
                .as_ref()
                .and_then(|all| all.decide(&named, policy));
            let verdict = stood_for.unwrap_or_else(|| decide(&named, policy, pins));
            verdict.action == Action::Allow
        };
        let known = match stand {
            Some(name) => vec![name],
            None => pins.recent(flow.address).into_iter().cloned().collect(),
        };
        known.into_iter().filter(passes).collect()
    }

    fn began(&self, address: IpAddr) {
        let state = &mut *self.0.state();
        match state.stand(address) {
            Some(stand) => stand.hold(),
            None => state.pins.hold(address),
        }
    }

    fn ended(&self, address: IpAddr) {
        let state = &mut *self.0.state();
        match state.stand(address) {
            Some(stand) => stand.release(),
            None => state.pins.release(address),
        }
    }

    fn real(&self, address: IpAddr) -> IpAddr {
        let state = &mut *self.0.state();
        let real = state.stand(address).and_then(|stand| stand.real.first());
        real.copied().unwrap_or(address)
    }

    fn name_of(&self, address: IpAddr) -> Option<Name> {
        let state = &mut *self.0.state();
        state.stand(address).map(|stand| stand.name.clone())
    }

    fn missed(&self, address: IpAddr) {
        if let Some(stand) = self.0.state().stand(address) {
            if stand.real.len() > 1 {
                stand.real.rotate_left(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Direction, Names, Preset, Protocol};

    #[test]
    fn the_names_of_a_flow_are_those_that_may_pass_the_latest_first() {
        let rules = ["allow@*.good.example:tcp:443", "allow@other.example:tcp:22"];
        let rules = rules.map(|rule| rule.parse().unwrap()).to_vec();
        let ward = Ward::new(Policy::new(Preset::None, rules, Names::Strict).unwrap());
        let address = "93.184.215.14".parse().unwrap();
        let pins = [
            "a.good.example",
            "b.good.example",
            "a.good.example",
            "other.example",
        ];
        for name in pins.map(|name| Name::parse(name).unwrap()) {
            ward.state().pins.pin(&name, address, Instant::now());
        }
        let flow = Flow {
            direction: Direction::Egress,
            protocol: Protocol::Tcp,
            address,
            port: Some(443),
            name: None,
        };
        let names = Warden(ward).names(&flow);
        let names: Vec<_> = names.iter().map(Name::as_str).collect();
        assert_eq!(names, ["a.good.example", "b.good.example"]);
    }
}
