"""The commands of `core` as tools of an MCP server; long work as jobs that outlive it."""
