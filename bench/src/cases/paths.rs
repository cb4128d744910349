//! All other paths of a packet, and the main paths again under a policy with every feature.

use guard_common::reason::{
    Outcome,
    Reason::{
        Allowed, ByteLimit, ClosedPort, ContainerAddress, Control, DeniedSource, Established,
        Exempt, Fragment, Malformed, NotGuarded, PacketLimit, Reply, SourceNotAllowed, TotalLimit,
    },
};

use super::{
    ANYWHERE, CLOSED_PORT, Case, CountedAt, Group, Subject, closed, no_service, open, web,
};
use crate::{
    frames::{
        PacketAddresses, ack, arp, later_fragment, malformed, neighbour_solicitation, syn, tagged,
        udp,
    },
    guarded::{ASKED, ASKED_FROM, CONTAINER, PUBLISHED},
    policies::{
        DENIED_FIRST, DENIED_PREFIX, FRIEND, LET_THROUGH, MONITOR,
        Name::{
            Connections, Containers, DenyPrefixes, Everything, Exceptions, Limits, Observe, Open,
            Packets, Restricted, SpentBytes, SpentTotal,
        },
        OFFICE, PANEL, PANEL_PORT, SPENT, SPENT_PORT, SSH, SSH_PORT, UNWELCOME, WEB_PORT,
    },
};

pub fn cases() -> Vec<Case> {
    let path =
        |names, policy, frame, expected| Case::guard(Group::Paths, names, policy, frame, expected);
    let full =
        |names, frame, expected| Case::guard(Group::Everything, names, Everything, frame, expected);
    let from = |source, port| syn(PacketAddresses::from(source), port);
    let segment = || ack(PacketAddresses::V4, CLOSED_PORT);
    let reply = || udp(PacketAddresses::V4, ASKED.port(), ASKED_FROM.port());
    let spent = |reason| (CountedAt::Service(SPENT), reason);
    let ssh = |reason| (CountedAt::Service(SSH), reason);
    vec![
        path(
            (
                "off-scope",
                "a port neither listed nor published, scope containers",
            ),
            Containers,
            closed(),
            no_service(NotGuarded),
        ),
        path(("not-ip", "ARP"), Packets, arp(), no_service(NotGuarded)),
        path(
            ("control", "neighbour discovery"),
            Packets,
            neighbour_solicitation(),
            no_service(Control),
        ),
        path(
            ("fragment", "a later fragment"),
            Packets,
            later_fragment(open()),
            no_service(Fragment),
        ),
        path(
            ("malformed", "a header with a wrong length, drop"),
            Packets,
            malformed(open()),
            no_service(Malformed),
        ),
        path(
            ("established", "TCP to a closed port, later segment"),
            Packets,
            segment(),
            no_service(Established),
        ),
        path(
            ("limits", "the same, within a budget"),
            Limits,
            segment(),
            no_service(Established),
        ),
        path(
            ("reply", "UDP that answers this host"),
            Packets,
            reply(),
            no_service(Reply),
        ),
        path(
            ("closed-udp", "UDP that answers no query, drop"),
            Packets,
            udp(PacketAddresses::V4, 53, CLOSED_PORT),
            no_service(ClosedPort),
        ),
        path(
            ("container", "a container's own address, drop"),
            Packets,
            syn(PacketAddresses::to(CONTAINER), WEB_PORT),
            no_service(ContainerAddress),
        ),
        path(
            ("observed", "closed port, only observed"),
            Observe,
            closed(),
            no_service(ClosedPort),
        )
        .observed(),
        path(
            ("open-no-budget", "open port without any budget"),
            Open,
            open(),
            web(Allowed),
        ),
        path(
            ("connections", "open port, within a budget of connections"),
            Connections,
            open(),
            web(Allowed),
        ),
        path(
            ("over-bytes", "over the bytes of its source, drop"),
            SpentBytes,
            open(),
            web(ByteLimit),
        ),
        path(
            ("over-total", "over the budget of all sources, drop"),
            SpentTotal,
            open(),
            web(TotalLimit),
        ),
        path(
            ("admitted", "a service for some sources, one of them"),
            Restricted,
            from(FRIEND, SSH_PORT),
            ssh(Allowed),
        ),
        path(
            ("not-admitted", "a service for some sources, another, drop"),
            Restricted,
            syn(PacketAddresses::V4, SSH_PORT),
            ssh(SourceNotAllowed),
        ),
        path(
            ("denied-prefix", "in one of a thousand denied /24s, drop"),
            DenyPrefixes,
            from(DENIED_PREFIX, WEB_PORT),
            no_service(DeniedSource),
        ),
        path(
            ("not-denied-prefix", "in none of them, pass"),
            DenyPrefixes,
            open(),
            web(Allowed),
        ),
        path(
            ("denied-here", "denied at this service, drop"),
            Exceptions,
            from(UNWELCOME, WEB_PORT),
            web(DeniedSource),
        ),
        path(
            (
                "over-with-exceptions",
                "over its budget, others are excepted, drop",
            ),
            Exceptions,
            syn(PacketAddresses::V4, SPENT_PORT),
            spent(PacketLimit),
        ),
        path(
            ("exempt", "over its budget, but exempt"),
            Exceptions,
            from(MONITOR, SPENT_PORT),
            spent(Exempt),
        ),
        path(
            ("let-through", "over its budget, but let through"),
            Exceptions,
            from(LET_THROUGH, SPENT_PORT),
            spent(Exempt),
        ),
        path(
            ("crowd", "over twenty times its budget, drop"),
            Exceptions,
            from(OFFICE, SPENT_PORT),
            spent(PacketLimit),
        ),
        full(
            ("full-closed", "closed port, drop"),
            closed(),
            no_service(ClosedPort),
        ),
        full(
            ("full-published", "a container's port, drop"),
            syn(PacketAddresses::V4, PUBLISHED),
            no_service(ClosedPort),
        ),
        full(
            ("full-open", "open port, all budgets"),
            open(),
            web(Allowed),
        ),
        full(
            ("full-open-ipv6", "the same, IPv6"),
            syn(PacketAddresses::V6, WEB_PORT),
            web(Allowed),
        ),
        full(
            ("full-open-tagged", "the same, two VLAN tags"),
            tagged(&open()),
            web(Allowed),
        ),
        full(
            ("full-segment", "the same, opens no connection"),
            ack(PacketAddresses::V4, WEB_PORT),
            web(Allowed),
        ),
        full(
            ("full-random", "the same, random sources"),
            open(),
            web(Allowed),
        )
        .from(ANYWHERE),
        full(
            ("full-addressed", "a service on one address, pass"),
            syn(PacketAddresses::V4, PANEL_PORT),
            (CountedAt::Service(PANEL), Allowed),
        ),
        full(
            ("full-over", "over its budget, drop"),
            syn(PacketAddresses::V4, SPENT_PORT),
            spent(PacketLimit),
        ),
        full(
            ("full-exempt", "over its budget, but exempt"),
            from(MONITOR, SPENT_PORT),
            spent(Exempt),
        ),
        full(
            ("full-denied", "denied address, drop"),
            from(DENIED_FIRST, WEB_PORT),
            no_service(DeniedSource),
        ),
        full(
            (
                "full-not-admitted",
                "a service for some sources, another, drop",
            ),
            syn(PacketAddresses::V4, SSH_PORT),
            ssh(SourceNotAllowed),
        ),
        full(
            ("full-limits", "TCP to a closed port, within its budgets"),
            segment(),
            no_service(Established),
        ),
        full(
            ("full-reply", "UDP that answers this host"),
            reply(),
            no_service(Reply),
        ),
    ]
}

impl Case {
    /// The case with mode observe: the packet passes, and is counted as one that would be dropped.
    fn observed(mut self) -> Self {
        if let Subject::Guard {
            outcome: Outcome { would_drop, .. },
            ..
        } = &mut self.subject
        {
            *would_drop = true;
        }
        self
    }
}
