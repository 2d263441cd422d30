// OpenCode asks plugins for no manifest, only for code: this adds the three skills and the MCP server to its configuration.
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"

const ROOT = dirname(dirname(fileURLToPath(import.meta.url)))
const SERVER = { type: "local", command: ["python3", join(ROOT, "mcp_server", "__main__.py")], timeout: 180_000 }

export const DistillKit = async () => ({
  config: async (config) => {
    config.skills = { ...config.skills, paths: [...(config.skills?.paths ?? []), join(ROOT, "skills")] }
    config.mcp = { distill: SERVER, ...config.mcp } // what the user wrote about "distill" wins
  },
})
