//! The server of the control API. It reads the agent's state and the kernel's counters, and sends changes to the
//! agent's loop. It does not write the tables of the packet path itself.

mod errors;
mod routes;
mod socket;

pub use self::{
    routes::ApiState,
    socket::{ControlSocket, SocketError},
};
