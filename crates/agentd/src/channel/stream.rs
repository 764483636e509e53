//! The state of one open stream: credit both ways and what was closed.

use super::error::{Code, ProtocolError, Refused};
use super::frame::DATA_MAX;
use super::outgoing::Lane;
use super::{CREDIT_MAX, CREDIT_TO_GUEST, CREDIT_TO_HOST};

/// One direction's channel from the host to the guest.
#[derive(Debug)]
struct Inward {
    /// What the host may still send.
    credit: u32,
    eof: bool,
}

/// One channel from the guest to the host.
#[derive(Debug)]
struct Outward {
    /// What the guest may still send.
    credit: u32,
    eof: bool,
}

#[derive(Debug)]
struct Channels {
    inward: Inward,
    outward: [Outward; 2],
}

/// A stream between OPEN and the moment its END is on the wire.
#[derive(Debug)]
pub(super) struct Stream {
    channels: Option<Channels>,
    pub lane: Lane,
    pub opened: bool,
    pub ended: bool,
}

impl Stream {
    pub fn new(has_channels: bool) -> Stream {
        let outward = || Outward {
            credit: CREDIT_TO_HOST,
            eof: false,
        };
        Stream {
            channels: has_channels.then(|| Channels {
                inward: Inward {
                    credit: CREDIT_TO_GUEST,
                    eof: false,
                },
                outward: [outward(), outward()],
            }),
            lane: Lane::default(),
            opened: false,
            ended: false,
        }
    }

    fn inward(&mut self) -> Result<&mut Inward, ProtocolError> {
        match &mut self.channels {
            Some(channels) => Ok(&mut channels.inward),
            None => Err(no_channels()),
        }
    }

    fn outward(&mut self, channel: u8) -> Option<&mut Outward> {
        let index = usize::from(channel).checked_sub(1)?;
        self.channels.as_mut()?.outward.get_mut(index)
    }

    /// Data of `length` bytes has come.
    pub fn receive_data(&mut self, length: usize) -> Result<(), ProtocolError> {
        let inward = self.inward()?;
        if inward.eof {
            return Err(ProtocolError::new(Code::Sequence, "DATA after EOF"));
        }
        match u32::try_from(length)
            .ok()
            .and_then(|length| inward.credit.checked_sub(length))
        {
            Some(left) => {
                inward.credit = left;
                Ok(())
            }
            None => Err(ProtocolError::new(Code::Credit, "more DATA than credit")),
        }
    }

    pub fn receive_eof(&mut self) -> Result<(), ProtocolError> {
        let inward = self.inward()?;
        if inward.eof {
            return Err(ProtocolError::new(Code::Sequence, "EOF after EOF"));
        }
        inward.eof = true;
        Ok(())
    }

    /// Credit has come; false if it is for a channel that is closed already.
    pub fn receive_credit(&mut self, channel: u8, amount: u32) -> Result<bool, ProtocolError> {
        let Some(outward) = self.outward(channel) else {
            return Err(no_channels());
        };
        if outward.eof {
            return Ok(false);
        }
        match outward.credit.checked_add(amount) {
            Some(sum) if sum <= CREDIT_MAX => {
                outward.credit = sum;
                Ok(true)
            }
            _ => Err(ProtocolError::new(Code::Credit, "credit above 2^30")),
        }
    }

    /// The consumer took `amount` bytes: whether the host has use for the credit.
    pub fn consumed(&mut self, amount: u32) -> Result<bool, Refused> {
        let Some(channels) = &mut self.channels else {
            return Err(Refused::NoChannel);
        };
        let inward = &mut channels.inward;
        match inward.credit.checked_add(amount) {
            Some(sum) if sum <= CREDIT_TO_GUEST && amount > 0 => {
                inward.credit = sum;
                Ok(!inward.eof)
            }
            _ => Err(Refused::NoRoom),
        }
    }

    /// Bytes that may be sent on a channel now, in one frame.
    pub fn room(&mut self, channel: u8) -> usize {
        match self.outward(channel) {
            Some(outward) if !outward.eof => (outward.credit as usize).min(DATA_MAX),
            _ => 0,
        }
    }

    pub fn send_data(&mut self, channel: u8, length: usize) -> Result<(), Refused> {
        let Some(outward) = self.outward(channel).filter(|outward| !outward.eof) else {
            return Err(Refused::NoChannel);
        };
        if length == 0 || length > DATA_MAX {
            return Err(Refused::NoRoom);
        }
        let left = outward.credit.checked_sub(length as u32);
        outward.credit = left.ok_or(Refused::NoRoom)?;
        Ok(())
    }

    pub fn send_eof(&mut self, channel: u8) -> Result<(), Refused> {
        match self.outward(channel) {
            Some(outward) if !outward.eof => {
                outward.eof = true;
                Ok(())
            }
            _ => Err(Refused::NoChannel),
        }
    }
}

fn no_channels() -> ProtocolError {
    ProtocolError::new(Code::Frame, "the stream has no such channel")
}
