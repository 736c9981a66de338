import HostMachine
import Kmem
import MemoryPrimitives
import PhysicalMemory
import Workloads

/// Physical memory and kmem over a simulated machine. Large requests get addresses that nobody can
/// dereference, as in the arena `kernel_va`; `access` knows what is behind them.
final class SmallSystem {
  let host: HostMachine
  let physical: PhysicalMemory
  let kmem: Kmem
  private let storage: [UnsafeMutableRawPointer]

  static let offset: UInt64 = 0x7000_0000_0000_0000

  init(_ memory: ByteCount, first: UInt64 = 1) throws {
    host = HostMachine(memory: memory)
    let mapStorage = UnsafeMutableRawPointer.allocate(
      byteCount: Int(MemoryMap.storage(ranges: 1).rawValue), alignment: 16)
    let earlyStorage = UnsafeMutableRawPointer.allocate(
      byteCount: Int(EarlyMemory.storage.rawValue), alignment: 16)
    let map = try MemoryMap(mapStorage, count: 1) { _ in
      FirmwareRange(
        base: PhysicalAddress(first << 12), length: ByteCount(memory.rawValue - first << 12), kind: .usable)
    }
    let early = EarlyMemory(earlyStorage, map: map, ceiling: PhysicalAddress(4 << 30))
    let pages = Kmem.size(processors: 1).pagesRoundedUp
    let home = early.take(pages)!
    physical = try PhysicalMemory.create(machine: host.machine, map: map, early: early)
    let context = UnsafeMutablePointer<Context>.allocate(capacity: 1)
    context.initialize(to: Context(physical: physical, directMap: host.machine.directMap))
    kmem = Kmem.create(
      in: host.machine.directMap.pointer(to: home.first), physical: physical, large: Self.large(context),
      machine: host.machine)
    storage = [mapStorage, earlyStorage, UnsafeMutableRawPointer(context)]
  }

  deinit { for pointer in storage { pointer.deallocate() } }

  var system: ReplaySystem { ReplaySystem(machine: host.machine, physical: physical, kmem: kmem) }

  struct Access: MemoryAccess {
    func pointer(to address: VirtualAddress) -> UnsafeMutableRawPointer? {
      address.rawValue > SmallSystem.offset ? (address.pointer! - Int(SmallSystem.offset)) : address.pointer
    }
  }

  private struct Context {
    let physical: PhysicalMemory
    let directMap: DirectMap
  }

  private static func large(_ context: UnsafeMutablePointer<Context>) -> LargePages {
    LargePages(
      UnsafeMutableRawPointer(context),
      take: { context, pages, _, zeroed, _ in
        let context = context!.assumingMemoryBound(to: Context.self)
        guard let run = try? context.pointee.physical.allocate(run: PageCount(pages), role: .kmem) else { return 0 }
        let start = context.pointee.directMap.pointer(to: run.first)
        if zeroed { start.initializeMemory(as: UInt8.self, repeating: 0, count: Int(pages << 12)) }
        return VirtualAddress(start).rawValue + SmallSystem.offset
      },
      give: { context, address, pages, _ in
        let context = context!.assumingMemoryBound(to: Context.self)
        let physical = PhysicalAddress(address - SmallSystem.offset - context.pointee.directMap.base)
        context.pointee.physical.free(FrameRun(first: physical.frame, count: PageCount(pages)))
        return true
      })
  }

  /// Replays `bytes` to the end and gives back what is left.
  func replay(_ bytes: [UInt8], keeping body: (Replay) -> Void = { _ in }) throws -> ReplaySummary {
    try bytes.withUnsafeBytes {
      let replay = try Replay.prepare(try PackedTrace($0), on: system)
      try replay.run(Access()) { _ in }
      body(replay)
      return replay.close(Access())
    }
  }
}

extension ReplaySummary {
  /// The figures by name.
  var figures: [String: UInt64] {
    var figures: [String: UInt64] = [:]
    forEachFigure { figures["\($0)"] = $1 }
    return figures
  }

  var text: String {
    var text = ""
    print(cycles: "cycles") { text += $0.string + "\n" }
    return text
  }
}

extension Line {
  var string: String { withBytes { String(decoding: $0, as: UTF8.self) } }
}
