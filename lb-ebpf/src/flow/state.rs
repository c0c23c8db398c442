//! The life of a flow: pure functions from a state and a packet to the next state.

use lb_common::{addr::Protocol, backend::BackendState, flow::FlowState};

use crate::wire::TcpFlags;

/// Who sent a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The client.
    Client,
    /// The backend.
    Backend,
}

/// The state of a flow that its first packet opens; `None` where such a packet opens none.
#[inline(always)]
pub const fn first(protocol: Protocol, flags: TcpFlags) -> Option<FlowState> {
    match protocol {
        Protocol::TCP if flags.opens() => Some(FlowState::HalfOpen),
        Protocol::TCP => None,
        Protocol(_) => Some(FlowState::Udp),
    }
}

/// The state after a packet.
///
/// A half-open connection is confirmed only by a client that has seen the backend's answer, so that a flood of forged
/// SYN and ACK never becomes one of the flows that may not be evicted.
#[inline(always)]
pub const fn next(state: FlowState, from: From, flags: TcpFlags) -> FlowState {
    match (state, from) {
        (FlowState::Free | FlowState::Busy | FlowState::Moved, _) => state,
        (FlowState::Udp, From::Backend) => FlowState::UdpAnswered,
        (FlowState::UdpAnswered, From::Client) => FlowState::UdpAssured,
        (FlowState::Udp | FlowState::UdpAnswered | FlowState::UdpAssured, _) => state,
        (_, _) if flags.has(TcpFlags::RST) => FlowState::Closing,
        (FlowState::HalfOpen, From::Backend) if flags.has(TcpFlags::SYN) => FlowState::Answered,
        (FlowState::HalfOpen, _) => FlowState::HalfOpen,
        (FlowState::Answered, From::Client) if !flags.has(TcpFlags::SYN) => {
            if flags.has(TcpFlags::FIN) {
                FlowState::ClientClosed
            } else {
                FlowState::Established
            }
        }
        (FlowState::Answered, _) => FlowState::Answered,
        (FlowState::Established, From::Client) if flags.has(TcpFlags::FIN) => FlowState::ClientClosed,
        (FlowState::Established, From::Backend) if flags.has(TcpFlags::FIN) => FlowState::BackendClosed,
        (FlowState::Established, _) => FlowState::Established,
        (FlowState::ClientClosed, From::Backend) if flags.has(TcpFlags::FIN) => FlowState::Closing,
        (FlowState::ClientClosed, _) => FlowState::ClientClosed,
        (FlowState::BackendClosed, From::Client) if flags.has(TcpFlags::FIN) => FlowState::Closing,
        (FlowState::BackendClosed, _) => FlowState::BackendClosed,
        (FlowState::Closing, _) => FlowState::Closing,
    }
}

/// Whether a packet from the client opens the conversation anew: the client reuses the port of a connection that is over,
/// or opens one with a backend that gets no new ones any more.
///
/// A SYN repeated to a drained backend is no new connection. One that was answered is left alone: its answer may be under
/// way.
#[inline(always)]
pub const fn opens_anew(state: FlowState, flags: TcpFlags, backend: BackendState) -> bool {
    match state {
        FlowState::ClientClosed | FlowState::BackendClosed | FlowState::Closing => flags.opens(),
        FlowState::HalfOpen => flags.opens() && matches!(backend, BackendState::UdpGone),
        FlowState::Established => flags.opens() && matches!(backend, BackendState::UdpGone | BackendState::Drain),
        FlowState::Free
        | FlowState::Busy
        | FlowState::Answered
        | FlowState::Udp
        | FlowState::UdpAnswered
        | FlowState::UdpAssured
        | FlowState::Moved => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: FlowState, packets: &[(From, u8)]) -> FlowState {
        packets.iter().fold(start, |state, (from, flags)| next(state, *from, TcpFlags(*flags)))
    }

    const SYN: u8 = 0x02;
    const SYN_ACK: u8 = 0x12;
    const ACK: u8 = 0x10;
    const FIN_ACK: u8 = 0x11;
    const RST: u8 = 0x04;

    #[test]
    fn a_handshake_establishes() {
        let start = first(Protocol::TCP, TcpFlags(SYN)).expect("a SYN opens");
        assert_eq!(after(start, &[(From::Backend, SYN_ACK), (From::Client, ACK)]), FlowState::Established);
    }

    #[test]
    fn a_forged_handshake_without_an_answer_stays_half_open() {
        assert_eq!(after(FlowState::HalfOpen, &[(From::Client, ACK), (From::Client, ACK)]), FlowState::HalfOpen);
    }

    #[test]
    fn a_repeated_syn_does_not_confirm() {
        assert_eq!(after(FlowState::HalfOpen, &[(From::Backend, SYN_ACK), (From::Client, SYN)]), FlowState::Answered);
    }

    #[test]
    fn both_fins_close_in_either_order() {
        for (first, second) in [(From::Client, From::Backend), (From::Backend, From::Client)] {
            assert_eq!(after(FlowState::Established, &[(first, FIN_ACK), (second, FIN_ACK)]), FlowState::Closing);
            assert_ne!(after(FlowState::Established, &[(first, FIN_ACK), (first, FIN_ACK)]), FlowState::Closing);
        }
    }

    #[test]
    fn a_reset_closes_any_connection() {
        for state in FlowState::ALL {
            let is_tcp = state >= FlowState::HalfOpen && state <= FlowState::Closing;
            assert_eq!(next(state, From::Backend, TcpFlags(RST)) == FlowState::Closing, is_tcp, "{state:?}");
        }
    }

    #[test]
    fn a_connection_that_is_over_opens_anew_by_a_syn_only() {
        for state in FlowState::ALL {
            let is_over = [FlowState::ClientClosed, FlowState::BackendClosed, FlowState::Closing].contains(&state);
            assert_eq!(opens_anew(state, TcpFlags(SYN), BackendState::Use), is_over, "{state:?}");
            for backend in BackendState::ALL {
                assert!(!opens_anew(state, TcpFlags(ACK), backend), "{state:?}");
            }
        }
    }

    #[test]
    fn a_backend_that_leaves_gets_no_connection_that_opens() {
        let opens = |state, backend| opens_anew(state, TcpFlags(SYN), backend);
        assert!(opens(FlowState::HalfOpen, BackendState::UdpGone));
        assert!(opens(FlowState::Established, BackendState::UdpGone));
        assert!(opens(FlowState::Established, BackendState::Drain));
        assert!(!opens(FlowState::HalfOpen, BackendState::Drain));
        assert!(!opens(FlowState::Answered, BackendState::UdpGone));
    }

    #[test]
    fn udp_is_assured_once_asked_again_after_an_answer() {
        let ask = (From::Client, 0);
        let answer = (From::Backend, 0);
        assert_eq!(after(FlowState::Udp, &[ask, ask]), FlowState::Udp);
        assert_eq!(after(FlowState::Udp, &[answer, answer]), FlowState::UdpAnswered);
        assert_eq!(after(FlowState::Udp, &[answer, ask]), FlowState::UdpAssured);
    }
}
