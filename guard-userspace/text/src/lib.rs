//! Texts as they are read and printed: where the lines of a file begin, and output that no terminal
//! takes for its own commands.

mod lines;
mod output;

pub use self::{
    lines::Lines,
    output::{one_line, print, print_json, print_warning, without_controls, write},
};
