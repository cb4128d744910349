//! The agent's end of the control API. It answers from what the agent and the kernel know; nothing
//! here can reach the packet path.

mod errors;
mod routes;
mod socket;

pub use self::{
    routes::ApiState,
    socket::{ControlSocket, SocketError},
};
