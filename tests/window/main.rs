//! Windows against plain sets, by example, and against bytes that nobody wrote.

mod growth;
mod hostile;
mod position;
mod sequence;
