"""Where the tools of a rollout come from: MCP servers, a Python file, an embedded browser, containers."""
