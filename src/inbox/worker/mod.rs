//! Workers: handlers over the queue.
