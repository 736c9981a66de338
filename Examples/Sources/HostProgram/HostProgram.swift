// A memory system inside an ordinary process: an object cache, its objects, and what they cost in frames.

import HostMachine
import KernelMemory

/// What the cache holds: 40 bytes.
struct Route {
  var destination: UInt64
  var gateway: UInt64
  var uses: (UInt64, UInt64, UInt64)
}

@main enum HostProgram {
  static func main() throws {
    let system = try HostSystem(memory: .mebibytes(64))
    // All memory ends with the system: it must outlive its last allocation, not only its last mention.
    defer { withExtendedLifetime(system) {} }
    let memory = system.memory
    let type = memory.kmem.type(named: "route")
    let size = ByteCount(UInt64(MemoryLayout<Route>.size))
    let cache = try memory.kmem.createCache(name: "routes", size: size)
    let before = memory.physical.freeCount

    var routes: [UnsafeMutablePointer<Route>] = []
    while routes.count < 10_000, let object = cache.alloc(type: type) {
      routes.append(object.bindMemory(to: Route.self, capacity: 1))
    }
    let frames = before - memory.physical.freeCount
    print("\(routes.count) routes of \(size.rawValue) bytes took \(frames.rawValue) frames.")

    for route in routes { cache.free(route, type: type) }
    memory.kmem.destroy(cache)
    let kept = before - memory.physical.freeCount
    print("Freed, they left \(kept.rawValue); \(memory.checkInvariants() ?? "all invariants hold").")
  }
}
