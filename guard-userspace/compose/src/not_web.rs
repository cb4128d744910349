//! Ports and images whose protocols are not HTTP: no reverse proxy carries them, and many are meant for everybody.

use guard_common::layout::PortProtocol;

/// Container ports of TCP, of protocols that are not HTTP and often serve everybody.
#[rustfmt::skip]
const FOR_EVERYBODY: &[u16] = &[
    // FTP, SSH such as that of a Git server, mail, DNS over TCP and TLS
    21, 22, 25, 53, 110, 143, 465, 587, 853, 993, 995, 2222, 4190,
    // OpenVPN over TCP
    1194,
    // MQTT, XMPP, IRC
    1883, 5222, 5269, 6667, 6697, 8883,
    // STUN and TURN, SIP, streams
    554, 1935, 3478, 5060, 5061, 5349, 8554,
    // voice chats: TeamSpeak's files, Mumble
    30033, 64738,
    // torrents, Syncthing
    6881, 22000, 51413,
    // games: Minecraft, Terraria
    7777, 25565,
    // Lightning, Ethereum
    9735, 30303,
];

/// Container ports of protocols that are not HTTP, and for nobody but their clients: a pool of database connections.
const FOR_CLIENTS: &[u16] = &[6543];

/// Parts of the names of images whose ports serve everybody.
#[rustfmt::skip]
const IMAGES: &[&str] = &[
    "minecraft", "valheim", "factorio", "terraria", "palworld", "satisfactory", "rust-server", "csgo", "cs2",
    "luanti", "minetest", "7dtd", "zomboid", "openttd", "teamspeak", "mumble", "wireguard", "openvpn", "ocserv",
    "coturn", "mailserver", "postfix", "dovecot",
];

/// Ports of panels that such images have as well.
const WEB: [u16; 10] = [80, 443, 3000, 5000, 8000, 8080, 8081, 8443, 9000, 9443];

/// Whether a port in a container belongs to a known protocol of TCP that is not HTTP.
pub fn is_known(port: u16) -> bool {
    FOR_EVERYBODY.contains(&port) || FOR_CLIENTS.contains(&port)
}

/// Whether a port in a container of this image may be meant for everybody, though it speaks no HTTP.
pub fn serves_everybody(protocol: PortProtocol, port: u16, image: &str) -> bool {
    let is_of_image = !WEB.contains(&port) && IMAGES.iter().any(|part| image.contains(part));
    match protocol {
        PortProtocol::Tcp => FOR_EVERYBODY.contains(&port) || is_of_image,
        // HTTP/3 is the only HTTP over UDP.
        PortProtocol::Udp => port != 443,
        PortProtocol::Sctp => true,
    }
}

/// Whether a port is dangerous and yet often meant for everybody, such as that of MQTT.
pub fn serves_everybody_all_the_same(protocol: PortProtocol, port: u16) -> bool {
    protocol == PortProtocol::Tcp && FOR_EVERYBODY.contains(&port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn games_mail_names_and_tunnels_may_be_for_everybody_and_web_ports_are_not() {
        use PortProtocol::{Sctp, Tcp, Udp};
        for (protocol, port, image, expected) in [
            (Tcp, 25565, "minecraft-server", true),
            (Tcp, 25566, "minecraft-server", true),
            (Tcp, 8080, "minecraft-server", false),
            (Udp, 2456, "valheim-server", true),
            (Tcp, 25, "anything", true),
            (Udp, 53, "pihole", true),
            (Udp, 51820, "wg-easy", true),
            (Udp, 443, "caddy", false),
            (Tcp, 3000, "grafana", false),
            (Tcp, 6543, "pooler", false),
            (Sctp, 1000, "a", true),
        ] {
            let is_it = serves_everybody(protocol, port, image);
            assert_eq!(is_it, expected, "{protocol:?} {port} {image}");
        }
    }
}
