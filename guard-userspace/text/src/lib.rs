//! Line numbers of texts that are read, the word that was meant by a misspelled one, and output without control
//! characters, which a terminal would interpret.

mod lines;
mod output;
mod suggest;

pub use self::{
    lines::Lines,
    output::{marked_colour, one_line, print, print_json, print_warning, without_controls, write},
    suggest::{all_of, any_of, nearest},
};
