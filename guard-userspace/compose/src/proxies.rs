//! Reverse proxies, by the names that they go by.

/// The ports that the web is served on.
pub const WEB: [u16; 2] = [80, 443];

/// Images that are nothing but reverse proxies.
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

/// Images that are proxies where they serve the web.
pub const WEB_SERVERS: [&str; 7] = [
    "nginx",
    "nginx-unprivileged",
    "caddy",
    "openresty",
    "httpd",
    "apache",
    "angie",
];

/// Names of services that are built here.
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
