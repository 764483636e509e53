//! What the stack asks others: the policy about flows and whom clients ask for, a resolver about DNS.

use crate::client::Asked;
use crate::policy::{Flow, Name, Verdict};
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;

/// The one who decides. Called by the thread of the stack only; must not block.
pub trait Gate: Send {
    /// Whether `flow` may pass.
    fn decide(&self, flow: &Flow) -> Verdict;

    /// Whether `flow` may pass whose client asks for `asked`: allowed or denied, nothing between.
    fn decide_asked(&self, flow: &Flow, asked: &Asked) -> Verdict;

    /// The names that the guest resolved to the address of `flow` and under which the flow may pass, the one that
    /// was resolved last first.
    fn names(&self, _flow: &Flow) -> Vec<Name> {
        Vec::new()
    }

    /// A flow to `address` began: what is known of its name outlives its time while it lasts.
    fn began(&self, _address: IpAddr) {}

    /// The flow ended.
    fn ended(&self, _address: IpAddr) {}

    /// Where the host's socket for a flow to `address` goes, which may stand for a name.
    fn real(&self, address: IpAddr) -> IpAddr {
        address
    }

    /// The name that `address` stands for, for the record.
    fn name_of(&self, _address: IpAddr) -> Option<Name> {
        None
    }

    /// Where `address` leads was not reached: if its name leads elsewhere too, go there next.
    fn missed(&self, _address: IpAddr) {}
}

/// How a question reached us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What became of a question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// A DNS message for the guest, or None to say nothing.
    pub message: Option<Vec<u8>>,
    /// What was decided about which name, for the record.
    pub decided: Option<(Name, Verdict)>,
}

/// An answer under way.
pub type Answer = Pin<Box<dyn Future<Output = Answered>>>;

/// A look-up under way of where an address leads that stands for a name. An error is the end of the flow,
/// with what was decided if it was that.
pub type Standing = Pin<Box<dyn Future<Output = Result<(), Option<(Name, Verdict)>>>>>;

/// Who answers every DNS question of the guest, to whatever server it was sent.
pub trait Resolver: Send {
    /// `message` is what the guest sent, up to 65,535 bytes of anything.
    fn answer(&self, message: Vec<u8>, over: Transport) -> Answer;

    /// What has to be waited for before a flow to `address` begins. None: nothing.
    fn standing(&self, _address: IpAddr) -> Option<Standing> {
        None
    }
}
