//! The pure rules of a message in the inbox.
