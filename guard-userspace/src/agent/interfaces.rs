//! Which interfaces are guarded.

use anyhow::{Context as _, Result, bail, ensure};

use super::Loaded;
use crate::host::{Netlink, XdpState};

/// The interfaces to guard: the policy's, or those of the default routes.
pub async fn names(loaded: &Loaded, netlink: &Netlink) -> Result<Vec<String>> {
    let names: Vec<String> = match &loaded.policy.interfaces {
        Some(interfaces) => {
            let names = interfaces.iter().map(|interface| interface.name.clone());
            names.collect()
        }
        None => netlink
            .default_route_interfaces()
            .await
            .context("the default routes cannot be read")?,
    };
    ensure!(
        !names.is_empty(),
        "{}: there is no default route to take the interfaces from: name them, as in `interfaces = \
         [\"eth0\"]`",
        loaded.path.display()
    );
    Ok(names)
}

/// What an interface is found to be.
pub enum Found {
    /// It can be guarded; the XDP program it has, if it has one.
    There(Option<XdpState>),
    Missing,
}

/// Looks at an interface.
///
/// # Errors
/// It is none that the program can guard.
pub async fn look(loaded: &Loaded, name: &str, netlink: &Netlink) -> Result<Found> {
    match netlink.is_ethernet(name).await {
        Ok(true) => Ok(match netlink.xdp(name).await {
            Ok(state) => Found::There(state),
            Err(_) => Found::Missing,
        }),
        Ok(false) => bail!(
            "{}{}: {name} is no Ethernet interface, and the program would not understand its frames: \
             tun, wg, ppp and the like are not supported, nor does guarding the interface below them \
             look inside",
            loaded.path.display(),
            line_of(loaded, name)
        ),
        Err(_) => Ok(Found::Missing),
    }
}

pub fn is_missing(loaded: &Loaded, name: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "{}{}: interface {name} does not exist: `ip -brief link` lists those that do",
        loaded.path.display(),
        line_of(loaded, name)
    )
}

/// `:3`, where the policy names the interface; nothing if it does not.
fn line_of(loaded: &Loaded, name: &str) -> String {
    let mut named = loaded.policy.interfaces.iter().flatten();
    named
        .find(|interface| interface.name == name)
        .map(|interface| format!(":{}", interface.line))
        .unwrap_or_default()
}
