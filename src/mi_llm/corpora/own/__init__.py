"""Your own dialogs: read in the formats that people have, with a reason for everything that is understood."""
