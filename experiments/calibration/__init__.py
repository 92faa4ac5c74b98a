"""False accusations of audits in which no text is a member, and power beside them."""
