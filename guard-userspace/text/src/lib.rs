//! Line numbers of texts that are read, and output without control characters, which a terminal would interpret.

mod lines;
mod output;

pub use self::{
    lines::Lines,
    output::{one_line, print, print_json, print_warning, without_controls, write},
};
