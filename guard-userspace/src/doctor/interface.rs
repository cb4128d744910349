//! Checks an interface: its XDP program, its driver, and its offloads.

use std::{fs, path::PathBuf, thread};

use futures_util::TryStreamExt as _;

use super::{BETWEEN_READINGS, DoctorFinding, DoctorInput};
use crate::{
    api::{Counter, InterfaceStatus},
    dataplane::require_capabilities,
    host::{Host, XdpState},
};

/// The largest MTU with one buffer per packet: a page, without XDP's headroom before the packet and the kernel's
/// `skb_shared_info` after it.
const LONGEST_UNFRAGMENTED: u32 = 3_498;

pub async fn examine(name: &str, known: &DoctorInput<'_>, host: &Host) -> Vec<DoctorFinding> {
    let Some(link) = host.link_named(name) else {
        let finding = match &host.links.error {
            Some(error) => {
                DoctorFinding::unknown("interface", format!("it cannot be read: {error}"))
            }
            None => DoctorFinding::failure(
                "interface",
                "it does not exist",
                "`ip -brief link` lists the interfaces",
            ),
        };
        return vec![finding.on(name)];
    };
    let xdp = link.xdp;
    let status = known.status.as_ref().ok();
    let mut guarded = status.into_iter().flat_map(|status| &status.interfaces);
    let guarded = guarded.find(|interface| interface.name == name);
    let above = host.xdp_above(link.index);
    let above = above.and_then(|above| Some((above.name.clone(), above.xdp?)));
    let mut findings = vec![
        program(xdp, guarded, above),
        driver(name),
        mtu(link.mtu, xdp),
        queues(name),
        lro(name, active_features(name).await),
    ];
    findings.extend(
        known
            .counters
            .as_ref()
            .map(|readings| packets(readings, name)),
    );
    findings
        .into_iter()
        .map(|finding| finding.on(name))
        .collect()
}

fn program(
    xdp: Option<XdpState>,
    guarded: Option<&InterfaceStatus>,
    above: Option<(String, XdpState)>,
) -> DoctorFinding {
    // A program of an upper device prevents attaching here (dev_xdp_attach in net/core/dev.c), and does not affect an
    // attached program.
    if let (None, Some((above, XdpState { program_id, .. }))) = (xdp, above) {
        return DoctorFinding::failure(
            "xdp",
            format!(
                "{above} is an upper device of it and has XDP program {program_id}: the kernel attaches none below"
            ),
            format!("`ip link set dev {above} xdp off` removes it"),
        );
    }
    match (xdp, guarded) {
        (Some(XdpState { native, .. }), Some(guarded)) if guarded.attached => {
            if native {
                return DoctorFinding::ok("xdp", "the guard is attached in the driver");
            }
            DoctorFinding::warning(
                "xdp",
                "the guard is attached in the kernel's generic path, which costs several times as much",
                "use a driver with XDP; if this driver has it, check what prevents it: MTU, LRO, queues",
            )
        }
        (None, Some(_)) => DoctorFinding::failure(
            "xdp",
            "the guard should be attached, and is not",
            "`guard status` and the agent's log show why",
        ),
        // Without these capabilities the guard's pins look as if there were none.
        (Some(XdpState { program_id, .. }), None) if require_capabilities().is_err() => {
            DoctorFinding::unknown(
                "xdp",
                format!("XDP program {program_id} is attached: this user cannot see whose it is"),
            )
            .advised("`sudo guard doctor` tells")
        }
        (Some(XdpState { program_id, .. }), _) => DoctorFinding::failure(
            "xdp",
            format!("another XDP program is attached: {program_id}"),
            format!(
                "`bpftool prog show id {program_id}` shows its name; `guard run --force` detaches it"
            ),
        ),
        (None, None) => {
            DoctorFinding::ok("xdp", "no XDP program is attached: the guard can attach")
        }
    }
}

/// The path of an interface's file in sysfs. `None`: sysfs shows another network namespace, or none.
fn sysfs(name: &str, file: &str) -> Option<PathBuf> {
    let folder = PathBuf::from("/sys/class/net").join(name);
    let index = fs::read_to_string(folder.join("ifindex")).ok()?;
    let own = nix::net::if_::if_nametoindex(name).ok()?;
    (index.trim().parse() == Ok(own)).then(|| folder.join(file))
}

const HIDDEN_SYSFS: &str = "/sys shows another network namespace than this one";

fn driver(name: &str) -> DoctorFinding {
    let Some(device) = sysfs(name, "device") else {
        return DoctorFinding::unknown("driver", HIDDEN_SYSFS)
            .advised(format!("`ethtool -i {name}` names the driver"));
    };
    if !device.exists() {
        return DoctorFinding::ok("driver", "none: the interface is virtual");
    }
    let driver = fs::read_link(device.join("driver")).ok();
    match driver.as_deref().and_then(|driver| driver.file_name()) {
        Some(driver) => DoctorFinding::ok("driver", driver.to_string_lossy()),
        None => DoctorFinding::unknown("driver", "sysfs names no driver of the device")
            .advised(format!("`ethtool -i {name}` may name it")),
    }
}

fn mtu(mtu: u32, xdp: Option<XdpState>) -> DoctorFinding {
    let is_generic = xdp.is_some_and(|xdp| !xdp.native);
    match mtu {
        mtu if mtu <= LONGEST_UNFRAGMENTED => {
            DoctorFinding::ok("mtu", format!("{mtu}: a packet fits one buffer"))
        }
        mtu if is_generic => DoctorFinding::warning(
            "mtu",
            format!(
                "{mtu}: packets need several buffers, which this driver may not support for XDP"
            ),
            format!("if jumbo frames are not needed, set it to {LONGEST_UNFRAGMENTED} or less"),
        ),
        mtu => DoctorFinding::ok(
            "mtu",
            format!("{mtu}: packets need several buffers, which the program reads"),
        ),
    }
}

fn queues(name: &str) -> DoctorFinding {
    let folder = sysfs(name, "queues").and_then(|folder| fs::read_dir(folder).ok());
    let Some(folder) = folder else {
        return DoctorFinding::unknown("queues", HIDDEN_SYSFS)
            .advised(format!("`ethtool -l {name}` shows the queues"));
    };
    let names = folder.flatten().map(|queue| queue.file_name());
    let count = names
        .filter(|name| name.to_string_lossy().starts_with("rx-"))
        .count();
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let is_physical = sysfs(name, "device").is_some_and(|device| device.exists());
    let finding = format!("receive queues: {count}, CPUs: {cpus}");
    if count == 1 && cpus > 1 && is_physical {
        let advice =
            format!("`ethtool -L {name} combined {cpus}`, if the interface supports more queues");
        return DoctorFinding::warning(
            "queues",
            format!("{finding}: one CPU processes every packet"),
            advice,
        );
    }
    DoctorFinding::ok("queues", finding)
}

/// The names of the features that are on. `None`: ethtool's netlink (Linux 5.6) returned none.
async fn active_features(name: &str) -> Option<Vec<String>> {
    use ethtool::{EthtoolAttr, EthtoolFeatureAttr};
    let (connection, mut handle, _) = ethtool::new_connection().ok()?;
    tokio::spawn(connection);
    let request = handle.feature().get(Some(name)).execute().await;
    let messages: Vec<_> = request.try_collect().await.ok()?;
    let facts = messages
        .into_iter()
        .flat_map(|message| message.payload.nlas);
    let mut active = facts.filter_map(|fact| match fact {
        EthtoolAttr::Feature(EthtoolFeatureAttr::Active(bits)) => Some(bits),
        _ => None,
    });
    let on = active.next()?.into_iter().filter(|bit| bit.value);
    Some(on.map(|bit| bit.name).collect())
}

fn lro(name: &str, active: Option<Vec<String>>) -> DoctorFinding {
    match active {
        None => DoctorFinding::unknown("lro", "ethtool's netlink returned no features").advised(
            format!("`ethtool -k {name}` shows them: large-receive-offload should be off"),
        ),
        Some(active) if active.iter().any(|name| name == "rx-lro") => DoctorFinding::warning(
            "lro",
            "large receive offload is on: the driver refuses XDP, or XDP gets merged packets",
            format!("`ethtool -K {name} lro off`"),
        ),
        Some(_) => DoctorFinding::ok("lro", "large receive offload is off"),
    }
}

fn packets([before, now]: &[Vec<Counter>; 2], name: &str) -> DoctorFinding {
    let sum = |counters: &[Counter]| -> u64 {
        let own = counters.iter().filter(|counter| counter.interface == name);
        own.map(|counter| counter.packets).sum()
    };
    let (before, now) = (sum(before), sum(now));
    let seconds = BETWEEN_READINGS.as_secs();
    match now.saturating_sub(before) {
        _ if now == 0 => DoctorFinding::warning(
            "packets",
            "no packet was counted since the guard was attached",
            "check that traffic comes in on this interface",
        ),
        0 => DoctorFinding::ok("packets", format!("none in {seconds} s, {now} before")),
        new => DoctorFinding::ok("packets", format!("{new} in {seconds} s")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Health;

    fn guarded(attached: bool) -> InterfaceStatus {
        InterfaceStatus {
            name: "eth0".to_owned(),
            attached,
            xdp_mode: "native".to_owned(),
            program_id: 7,
            generation: 1,
            trouble: None,
        }
    }

    #[test]
    fn each_state_of_the_xdp_program_has_its_health() {
        let xdp = |native| {
            Some(XdpState {
                program_id: 7,
                native,
            })
        };
        let above = |native| Some(("br0".to_owned(), xdp(native)?));
        for (xdp, guarded, above, health) in [
            (xdp(true), Some(guarded(true)), None, Health::Ok),
            (xdp(false), Some(guarded(true)), None, Health::Warning),
            (None, Some(guarded(false)), None, Health::Failure),
            (xdp(true), Some(guarded(false)), None, Health::Failure),
            (xdp(true), None, None, Health::Failure),
            (None, None, None, Health::Ok),
            (None, None, above(false), Health::Failure),
            (xdp(true), Some(guarded(true)), above(false), Health::Ok),
        ] {
            assert_eq!(
                program(xdp, guarded.as_ref(), above).health,
                health,
                "{xdp:?} {guarded:?}"
            );
        }
    }

    #[test]
    fn long_packets_matter_in_the_generic_path_and_lro_everywhere() {
        let generic = Some(XdpState {
            program_id: 7,
            native: false,
        });
        assert_eq!(mtu(1_500, generic).health, Health::Ok);
        assert_eq!(mtu(9_000, None).health, Health::Ok);
        assert_eq!(mtu(9_000, generic).health, Health::Warning);
        assert_eq!(
            lro("eth0", Some(vec!["rx-lro".to_owned()])).health,
            Health::Warning
        );
        assert_eq!(
            lro("eth0", Some(vec!["rx-gro".to_owned()])).health,
            Health::Ok
        );
        assert_eq!(lro("eth0", None).health, Health::Unknown);
    }

    #[test]
    fn what_cannot_be_seen_has_a_next_step() {
        // No interface has this name, so sysfs does not show it.
        for unseen in [
            driver("nowhere0"),
            queues("nowhere0"),
            lro("nowhere0", None),
        ] {
            assert_eq!(unseen.health, Health::Unknown);
            let advice = unseen.advice.unwrap();
            assert!(
                advice.contains("ethtool") && advice.contains("nowhere0"),
                "{advice}"
            );
        }
    }
}
