//! Port 53: whatever server the guest calls, the resolver answers.

use super::core::Core;
use super::gate::{Answer, Answered, Resolver, Transport};
use super::metrics::add;
use super::packet::{Packet, Reject};
use super::reply;
use super::upstream::Upstream;
use crate::policy::{Flow, Protocol};
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

pub const PORT: u16 = 53;

/// How long an answer may take; resolvers of programs give up earlier.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a connection waits for the next question (RFC 7766, 6.2.3 leaves it to the server).
const IDLE: Duration = Duration::from_secs(30);

/// A question in a datagram, from the guest's port `from`.
pub fn question(
    core: &Rc<Core>,
    packet: &Packet<'_>,
    from: u16,
    data: &[u8],
) -> Result<(), Reject> {
    let (guest, server) = (packet.source, packet.target);
    if *core.questions.borrow() >= core.config.limits.questions {
        return Err(Reject::Full);
    }
    let asked = ask(core, data.to_vec(), Transport::Udp);
    let mut answer = Box::pin(asked.answer(server));
    let told = move |core: &Core, answer: Option<Vec<u8>>| {
        if let Some(answer) = answer {
            core.answer(reply::udp((server, PORT), (guest, from), &answer));
        }
    };
    // What is known already leaves with the answers to the other packets of the batch. A task, in which waking
    // means something, asks again for what is not.
    if let Poll::Ready(answer) = answer
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        told(core, answer);
        return Ok(());
    }
    let core = Rc::clone(core);
    Rc::clone(&core).spawn(async move {
        let answer = answer.await;
        told(&core, answer);
        core.kick();
    });
    Ok(())
}

/// The far end of a TCP connection to a server.
pub fn stream(core: &Rc<Core>, server: IpAddr) -> io::Result<Upstream> {
    let (near, far) = UnixStream::pair()?;
    let core = Rc::clone(core);
    Rc::clone(&core).spawn(async move {
        // It ends when the guest does, or when the guest does not read; neither is of interest.
        let _ = serve(&core, server, far).await;
    });
    Ok(Upstream::Local(near))
}

/// Messages after their 16-bit lengths (RFC 1035, 4.2.2), one after the other.
async fn serve(core: &Rc<Core>, server: IpAddr, mut stream: UnixStream) -> io::Result<()> {
    loop {
        let length = timeout(IDLE, stream.read_u16()).await??;
        let mut message = vec![0; usize::from(length)];
        timeout(IDLE, stream.read_exact(&mut message)).await??;
        if *core.questions.borrow() >= core.config.limits.questions {
            return Ok(());
        }
        let Some(answer) = ask(core, message, Transport::Tcp).answer(server).await else {
            return Ok(());
        };
        let Ok(length) = u16::try_from(answer.len()) else {
            return Ok(());
        };
        let framed = [&length.to_be_bytes()[..], &answer].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

fn ask(core: &Rc<Core>, message: Vec<u8>, over: Transport) -> Asked {
    add(&core.metrics.questions, 1);
    *core.questions.borrow_mut() += 1;
    Asked {
        answer: core.resolver.borrow().answer(message, over),
        core: Rc::clone(core),
    }
}

/// A question under way: counted until it is dropped.
struct Asked {
    answer: Answer,
    core: Rc<Core>,
}

impl Asked {
    /// What to tell the guest, which asked `server`; the decision goes on record.
    async fn answer(mut self, server: IpAddr) -> Option<Vec<u8>> {
        let answered = timeout(PATIENCE, &mut self.answer).await.ok()?;
        if let Some((name, verdict)) = answered.decided {
            let flow = Flow {
                name: Some(name),
                ..self.core.egress(Protocol::Udp, server, Some(PORT))
            };
            self.core.record(&flow, &verdict);
        }
        answered.message
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        *self.core.questions.borrow_mut() -= 1;
    }
}

/// Answers every question with REFUSED: for a network without names.
pub struct Refuser;

impl Resolver for Refuser {
    fn answer(&self, mut message: Vec<u8>, _: Transport) -> Answer {
        let refused = match message.get_mut(2..4) {
            // A response is no question.
            Some(flags) if flags[0] & 0x80 == 0 && flags.len() == 2 => {
                flags[0] |= 0x80;
                flags[1] = 5;
                (message.len() >= 12).then_some(message)
            }
            _ => None,
        };
        Box::pin(std::future::ready(Answered {
            message: refused,
            decided: None,
        }))
    }
}
