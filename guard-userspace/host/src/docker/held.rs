//! Ports that sockets of this host hold. A container that does not run and publishes such a port cannot have it: the
//! runtime would fail to bind it (`docker run -p 22:22` beside sshd leaves a container in state `created`). Closed for
//! that container, the port would cut off the host's own service.

use super::{Container, Inventory, Publication};
use crate::Listener;

impl Inventory {
    /// Whether a socket of this host may hold a port that a container publishes: a container that does not run
    /// publishes ports.
    pub fn has_contested_ports(&self) -> bool {
        let mut containers = self.containers.values();
        containers.any(|container| !container.running && !container.publishes.is_empty())
    }

    /// Whether a socket holds a port that a container that does not run publishes.
    pub(super) fn contests(&self, listener: &Listener) -> bool {
        let port = listener.address.port();
        let waiting = self.containers.values();
        let waiting = waiting.filter(|container| !container.running);
        let mut publications = waiting.flat_map(|container| &container.publishes);
        publications.any(|publication| {
            let holders = std::slice::from_ref(listener);
            publication.ports().contains(&port) && is_held(publication, port, holders)
        })
    }
}

impl Container {
    /// The ports that it publishes, or will publish when it is started, one by one. `listeners`: the listening sockets
    /// of this host; `None`: they are not known, and hold no port.
    pub(super) fn publications(
        &self,
        listeners: Option<&[Listener]>,
    ) -> impl Iterator<Item = Publication> {
        let may_be_held = !self.running;
        self.publishes.iter().flat_map(move |publication| {
            let ports = publication.ports().filter(move |port| {
                !may_be_held || !is_held(publication, *port, listeners.unwrap_or_default())
            });
            ports.map(|port| Publication {
                first: port,
                last: port,
                ..publication.clone()
            })
        })
    }
}

/// Whether a socket prevents the runtime from binding a port of a publication.
fn is_held(publication: &Publication, port: u16, listeners: &[Listener]) -> bool {
    let mut listeners = listeners.iter();
    listeners.any(|listener| {
        let is_met = match publication.address {
            Some(address) => listener.accepts(address),
            None => true,
        };
        listener.protocol == publication.protocol && listener.address.port() == port && is_met
    })
}

#[cfg(test)]
mod tests {
    use guard_common::layout::PortProtocol;

    use super::*;

    fn listener(address: &str) -> Listener {
        Listener {
            protocol: PortProtocol::Tcp,
            address: address.parse().unwrap(),
            dual_stack: false,
        }
    }

    fn container(publication: Publication) -> Container {
        Container {
            publishes: [publication].into(),
            ..Container::default()
        }
    }

    fn tcp(address: Option<&str>, first: u16, last: u16) -> Publication {
        Publication {
            protocol: PortProtocol::Tcp,
            address: address.map(|address| address.parse().unwrap()),
            first,
            last,
            inside: 80,
        }
    }

    fn ports(container: &Container, listeners: &[Listener]) -> Vec<u16> {
        let publications = container.publications(Some(listeners));
        publications.map(|publication| publication.first).collect()
    }

    #[test]
    fn a_port_that_a_socket_holds_belongs_to_no_container_until_it_runs() {
        let mut created = container(tcp(None, 21, 23));
        assert_eq!(ports(&created, &[]), [21, 22, 23]);
        assert_eq!(ports(&created, &[listener("0.0.0.0:22")]), [21, 23]);
        assert_eq!(ports(&created, &[listener("203.0.113.10:22")]), [21, 23]);
        assert_eq!(created.publications(None).count(), 3);
        created.running = true;
        assert_eq!(ports(&created, &[listener("0.0.0.0:22")]), [21, 22, 23]);
    }

    #[test]
    fn only_sockets_at_ports_of_containers_that_do_not_run_are_looked_at() {
        let mut waiting = container(tcp(Some("203.0.113.10"), 8_000, 8_001));
        waiting.publishes.insert(tcp(None, 22, 22));
        let mut running = container(tcp(None, 80, 80));
        running.running = true;
        let inventory = Inventory {
            containers: [("one", waiting), ("two", running)]
                .map(|(id, container)| (id.to_owned(), container))
                .into(),
            ..Inventory::default()
        };
        for address in ["203.0.113.10:8001", "0.0.0.0:8000", "192.0.2.1:22"] {
            assert!(inventory.contests(&listener(address)), "{address}");
        }
        for address in ["203.0.113.11:8001", "203.0.113.10:8002", "0.0.0.0:80"] {
            assert!(!inventory.contests(&listener(address)), "{address}");
        }
    }

    #[test]
    fn a_socket_on_another_address_holds_nothing() {
        let created = container(tcp(Some("203.0.113.11"), 443, 443));
        assert_eq!(ports(&created, &[listener("203.0.113.10:443")]), [443]);
        for holds in ["203.0.113.11:443", "0.0.0.0:443"] {
            assert_eq!(
                ports(&created, &[listener(holds)]),
                Vec::<u16>::new(),
                "{holds}"
            );
        }
        let udp = Listener {
            protocol: PortProtocol::Udp,
            ..listener("0.0.0.0:443")
        };
        assert_eq!(ports(&created, &[udp]), [443]);
    }
}
