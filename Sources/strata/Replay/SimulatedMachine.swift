// The machine that the host tool replays on.

import HostMachine
import Kmem
import MemoryPrimitives
import PhysicalMemory
import Workloads

/// One simulated machine with all floors up.
final class SimulatedMachine {
  private let host: HostMachine
  let system: ReplaySystem
  private let storage: [UnsafeMutableRawPointer]
  let access = DirectAccess()

  init(memory: ByteCount) throws {
    guard memory >= .mebibytes(4), memory <= .gibibytes(64) else {
      throw Complaint("--memory is 4M to 64G", .unavailable)
    }
    host = HostMachine(memory: memory)
    let mapStorage = UnsafeMutableRawPointer.allocate(
      byteCount: Int(MemoryMap.storage(ranges: 1).rawValue), alignment: 16)
    let earlyStorage = UnsafeMutableRawPointer.allocate(byteCount: Int(EarlyMemory.storage.rawValue), alignment: 16)
    storage = [mapStorage, earlyStorage]
    let map = try MemoryMap(mapStorage, count: 1) { _ in
      FirmwareRange(base: PhysicalAddress(1 << 20), length: memory - .mebibytes(1), kind: .usable)
    }
    let early = EarlyMemory(earlyStorage, map: map, ceiling: PhysicalAddress(4 << 30))
    let home = early.take(Kmem.size(processors: 1).pagesRoundedUp)!
    let physical = try PhysicalMemory.create(machine: host.machine, map: map, early: early)
    let kmem = Kmem.create(
      in: host.machine.directMap.pointer(to: home.first), physical: physical, large: nil, machine: host.machine)
    system = ReplaySystem(machine: host.machine, physical: physical, kmem: kmem)
  }

  deinit { for pointer in storage { pointer.deallocate() } }
}
