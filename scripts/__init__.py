"""The commands, mounted as the import package `modelpress`."""
