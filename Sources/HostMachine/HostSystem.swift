// A small memory system inside an ordinary process: all layers, assembled over a simulated machine.
//
//   let system = try HostSystem(memory: .mebibytes(64))
//   let kmem = system.memory.kmem
//   let buffer = kmem.alloc(100, type: kmem.type(named: "mine"))
//
// Each system has RAM, processors and statistics of its own, so several exist side by side.

import KernelMemory
import MemoryPrimitives
import PageTables
import PhysicalMemory

/// A simulated machine and the memory system that owns its memory. The system ends with this object: nothing that
/// was allocated from it may be used afterwards.
public final class HostSystem: @unchecked Sendable {
  /// The machine, and how it boots. The default suits most users.
  public struct Options {
    /// The processors of the machine. A thread becomes one by `SimulatedMachine.runAs(processor:)` or `onThreads`.
    public var processors = 1
    /// Further processors, for threads that the memory system starts and threads that wait for each other.
    /// Without any, a thread that would sleep is refused.
    public var threads = 0
    /// The firmware's memory map. Nil is one usable range from 1 MiB to the end of memory.
    public var firmware: [FirmwareRange]?
    /// Ranges that are in use before boot.
    public var occupied: [OccupiedRange] = []
    /// The rules by which usable memory is left out.
    public var rules = MapRules()
    /// Memory that the system does not own but maps.
    public var carveOut = CarveOut()
    /// The segments of a kernel image.
    public var image: [ImageSegment] = []
    /// The levels of the page tables.
    public var levels: PagingLevels = .four
    /// The largest leaf that the page tables may use.
    public var largestLeaf: LargestLeaf = .mebibytes2

    /// One processor and all memory from 1 MiB on.
    public init() {}
  }

  /// The machine: its processors, its clock, and the faults that its memory system reports.
  public let host: SimulatedMachine
  /// The layers, from physical memory up to statistics.
  public let memory: MemorySystem
  private let workspace: UnsafeMutableRawPointer
  private let workspaceSize: Int
  /// Bytes behind the workspace that must keep their value.
  private static let guardSize = 64
  private static let guardByte: UInt8 = 0xa5

  /// Makes a machine with `memory` bytes of RAM, and assembles all layers over it. Throws when the machine is too
  /// small. RAM is reserved from the host only as it is used.
  public convenience init(memory size: ByteCount, _ options: Options = Options()) throws(AssemblyError) {
    let host = SimulatedMachine(memory: size, processors: options.processors + options.threads)
    host.hasOtherThreads = options.threads > 0
    try self.init(on: host, options)
  }

  /// Assembles all layers over `host`, whose processors are those that there are. `activate` is called with the
  /// address of the root of the page tables once they are complete.
  public init(
    on host: SimulatedMachine, _ options: Options = Options(),
    activate: (PhysicalAddress) -> Void = { _ in }
  ) throws(AssemblyError) {
    self.host = host
    let low = ByteCount.mebibytes(1)
    let firmware =
      options.firmware
      ?? [
        FirmwareRange(
          base: PhysicalAddress(low.rawValue), length: host.memorySize.subtractingSaturated(low),
          kind: .usable)
      ]
    workspaceSize = Int(
      MemorySystem.workspaceSize(ranges: firmware.count + options.carveOut.count).rawValue)
    workspace = .allocate(byteCount: workspaceSize + Self.guardSize, alignment: 64)
    workspace.initializeMemory(as: UInt8.self, repeating: 0, count: workspaceSize)
    (workspace + workspaceSize).initializeMemory(
      as: UInt8.self, repeating: Self.guardByte, count: Self.guardSize)
    var request = BootRequest(
      machine: host.machine, workspace: workspace, firmwareRangeCount: firmware.count)
    request.rules = options.rules
    request.carveOut = options.carveOut
    request.levels = options.levels
    request.largestLeaf = options.largestLeaf
    do throws(AssemblyError) {
      memory = try Self.assemble(request, options, firmware, activate)
    } catch {
      workspace.deallocate()
      throw error
    }
  }

  deinit { workspace.deallocate() }

  private static func assemble(
    _ request: BootRequest, _ options: Options, _ firmware: [FirmwareRange],
    _ activate: (PhysicalAddress) -> Void
  ) throws(AssemblyError) -> MemorySystem {
    let result = options.occupied.withUnsafeBufferPointer { occupied in
      options.image.withUnsafeBufferPointer { image in
        var request = request
        request.occupied = occupied
        request.image = image
        return Result { () throws(AssemblyError) in
          try MemorySystem.assemble(request, firmware: { firmware[$0] }, activate: activate)
        }
      }
    }
    return try result.get()
  }

  /// Whether no layer has written past the workspace that it was given.
  package var isWorkspaceIntact: Bool {
    (0..<Self.guardSize).allSatisfy {
      (workspace + workspaceSize).load(fromByteOffset: $0, as: UInt8.self) == Self.guardByte
    }
  }
}
