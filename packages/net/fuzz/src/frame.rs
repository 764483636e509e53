//! Frames of a guest: the reader of the link, the parser of packets, and reassembly. Whatever comes, nothing
//! panics, what is accepted is within its bounds, and answers made from it parse again.

use microsandbox_net_native::stack::fragments::Fragments;
use microsandbox_net_native::stack::link::Reader;
use microsandbox_net_native::stack::packet::{self, Ends, Frame};
use microsandbox_net_native::stack::reply;
use std::time::Instant;

pub fn frame(bytes: &[u8]) {
    let ends = Ends {
        guest_mac: [2, 0, 0, 0, 0, 2],
        gateway_mac: [2, 0, 0, 0, 0, 1],
        v4: Some(([10, 9, 0, 2].into(), [10, 9, 0, 1].into())),
        v6: Some((
            [0xfd09, 0, 0, 0, 0, 0, 0, 2].into(),
            [0xfd09, 0, 0, 0, 0, 0, 0, 1].into(),
        )),
    };
    let mut reader = Reader::default();
    let mut fragments = Fragments::default();
    let now = Instant::now();
    for piece in bytes.chunks(1500) {
        reader.space()[..piece.len()].copy_from_slice(piece);
        reader.filled(piece.len());
        while let Ok(Some(place)) = reader.frame_at() {
            let mut frame = reader.frame(place).to_vec();
            if frame.len() >= 12 {
                // Else hardly any frame would come past the first check.
                frame[..6].copy_from_slice(&ends.gateway_mac);
                frame[6..12].copy_from_slice(&ends.guest_mac);
            }
            if let Some(head) = frame.get_mut(14..34).filter(|head| head[0] >> 4 == 4) {
                head[12..16].copy_from_slice(&[10, 9, 0, 2]);
                head[10..12].copy_from_slice(&[0, 0]);
                let value = !packet::sum(head, 0);
                head[10..12].copy_from_slice(&value.to_be_bytes());
            } else if let Some(source) = frame.get_mut(22..38) {
                source.copy_from_slice(&[0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
            }
            let Ok(Frame::Ip(packet)) = packet::parse(&frame, &ends) else {
                continue;
            };
            assert!(packet.payload.len() <= packet.bytes.len());
            let reset = reply::reset(packet.source, packet.target, packet.payload);
            let error = reply::time_exceeded(packet.target, packet.source, packet.bytes);
            for answer in reset.into_iter().chain([error]) {
                assert!(reply::fragments(answer, 1280, 1)
                    .iter()
                    .all(|piece| piece.len() <= 1280));
            }
            if let Some(fragment) = packet.fragment {
                if let Ok(Some(whole)) = fragments.add(&packet, fragment, now) {
                    assert!(whole.payload.len() <= 65_515);
                }
            }
        }
    }
}
