//! Why a packet was passed on untouched, or dropped.

/// What happens to a packet that is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The host's stack has it, untouched.
    Pass,
    /// It is discarded.
    Drop,
}

macro_rules! reasons {
    ($($(#[doc = $help:literal])+ $variant:ident $name:literal => $action:ident,)+) => {
        /// Why a packet was passed on untouched or dropped; each is counted once.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $help])+ $variant,)+
        }

        impl Reason {
            /// Every reason, at the index of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in listings and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// A sentence for the person who sees it counted.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($help),+)),+ }
            }

            /// What is done with the packet.
            #[inline(always)]
            pub const fn action(self) -> Action {
                match self { $(Self::$variant => Action::$action),+ }
            }
        }
    };
}

reasons! {
    /// Neither to a frontend nor from a backend to one's client.
    NotOurs "not_ours" => Pass,
    /// The headers end before they are complete.
    Truncated "truncated" => Pass,
    /// The headers contradict themselves.
    Malformed "malformed" => Pass,
    /// More IPv6 extension headers than are followed.
    ExtensionHeaders "extension_headers" => Pass,
    /// A later fragment of a datagram whose first fragment was not seen.
    FragmentUnknown "fragment_unknown" => Pass,
    /// A TCP packet to a frontend that neither opens a connection nor belongs to one.
    NoFlow "no_flow" => Pass,
    /// The sender's address is none that is forwarded: unspecified, loopback, link-local or multicast.
    SourceScope "source_scope" => Pass,
    /// No rule of the nth chain takes this choice.
    NoRuleMatched "no_rule_matched" => Pass,
    /// The service has no backend to choose from.
    NoBackend "no_backend" => Drop,
    /// Both buckets of the flow table are full of flows that may not be evicted.
    FlowTableFull "flow_table_full" => Drop,
    /// Both buckets of the reply table are full of queries still waiting for an answer.
    ReplyTableFull "reply_table_full" => Drop,
    /// Every backend tried already serves this client's address and port for another frontend.
    Clash "clash" => Drop,
    /// Another CPU kept taking the entry this flow was to be written to.
    Contention "contention" => Drop,
    /// The hop limit is used up.
    HopLimit "hop_limit" => Drop,
    /// The host has no route on which to send the packet.
    NoRoute "no_route" => Drop,
    /// The packet does not fit the next link.
    TooBig "too_big" => Drop,
    /// A record that another one names is missing.
    Inconsistent "inconsistent" => Drop,
    /// The kernel refused to change the packet.
    RewriteRefused "rewrite_refused" => Drop,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_their_numbers() {
        for (number, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, number);
        }
    }

    #[test]
    fn names_are_distinct_metric_labels() {
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert!(reason.name().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", reason.name());
            assert!(Reason::ALL[..i].iter().all(|other| other.name() != reason.name()), "{}", reason.name());
            assert!(reason.help().trim().ends_with('.'), "{}", reason.name());
        }
    }
}
