//! Recognises reverse proxies by the names of their images and services.

/// The ports of HTTP and HTTPS.
pub const WEB: [u16; 2] = [80, 443];

/// Images that are only reverse proxies.
pub const PROXIES: [&str; 12] = [
    "traefik",
    "nginx-proxy",
    "nginx-proxy-manager",
    "nginx-proxy-manager-zh",
    "caddy-docker-proxy",
    "swag",
    "haproxy",
    "envoy",
    "kong",
    "apisix",
    "bunkerweb",
    "zoraxy",
];

/// Images that count as proxies if they serve the web.
pub const WEB_SERVERS: [&str; 7] = [
    "nginx",
    "nginx-unprivileged",
    "caddy",
    "openresty",
    "httpd",
    "apache",
    "angie",
];

/// Names of services that count as proxies if they have no image, but are built.
pub const PROXY_NAMES: [&str; 8] = [
    "traefik",
    "nginx",
    "caddy",
    "haproxy",
    "proxy",
    "reverse-proxy",
    "reverse_proxy",
    "reverseproxy",
];

/// `nginx-proxy` of `registry.example:5000/proxies/nginx-proxy:1.2@sha256:…`.
pub fn image_name(image: &str) -> &str {
    let path = image.split('@').next().unwrap_or(image);
    let last = path.rsplit('/').next().unwrap_or(path);
    last.split(':').next().unwrap_or(last)
}
