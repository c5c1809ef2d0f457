//! The manager as its users see it.
