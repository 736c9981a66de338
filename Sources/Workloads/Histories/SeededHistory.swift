// Seeded histories: long random sequences of operations on one layer of a live system, which depend on
// their seed only and end with a checksum.
//
// XCTest runs them on the host, `selftest history` runs them in the kernel on a second instance of the same
// size; the checksums must be equal, which is what "one core" means. So the sum takes in frame numbers,
// offsets, sizes and states: never a pointer (offsets from the base of the direct map or of an arena
// instead), a call site, a time, or anything that waiting could change. Both instances need the same memory,
// the same features of page tables and one processor, and must be used by nobody else.
//
// What a history holds stands in a table of slots in memory that the caller gives, not in the instance's
// own. Phases of growth and of decline take turns, so that memory runs out now and then and comes back.
// Results are checked as they come (alignment, ranges, zeroes, stamps), the layer's invariants every so often, and
// at the end everything is given back and must be there.

import KernelMemory
import MemoryPrimitives
import PhysicalMemory

/// Which layer a history is about.
@frozen public enum HistoryKind: UInt8, Sendable {
  case buddy, runs, vmem, kernelSpace, kmem

  public static var count: Int { 5 }

  public var description: StaticString {
    switch self {
    case .buddy: "buddy"
    case .runs: "runs"
    case .vmem: "vmem"
    case .kernelSpace: "kernel space"
    case .kmem: "kmem"
    }
  }
}

/// What to do.
public struct HistoryPlan: Sendable {
  public var kind: HistoryKind
  public var seed: UInt64
  public var operations: UInt64
  /// The layer's invariants are checked after each so many operations, and at the end.
  public var checkEvery: UInt64

  public init(_ kind: HistoryKind, seed: UInt64, operations: UInt64, checkEvery: UInt64 = 1000) {
    self.kind = kind
    self.seed = seed
    self.operations = operations
    self.checkEvery = checkEvery
  }
}

extension HistoryPlan {
  /// What `selftest history` runs, and the test that compares it with the host.
  public static func standard(_ kind: HistoryKind) -> HistoryPlan {
    HistoryPlan(kind, seed: 0x5354_5241_5441, operations: 5000)
  }
}

/// What came of it.
public struct HistoryOutcome: Sendable {
  public var checksum: UInt64
  public var operations: UInt64
  /// Requests that got something, and those that were refused.
  public var granted: UInt64
  public var refused: UInt64
  /// The invariant that was broken, and after how many operations. Nil when all held.
  public var broken: StaticString?
}

/// A history while it runs. A plain value: one caller, one processor.
public struct SeededHistory {
  /// What the history holds: meanings are each kind's own.
  struct Slot {
    var a: UInt64
    var b: UInt64
    var c: UInt64
    var d: UInt64
  }

  let system: MemorySystem
  let plan: HistoryPlan
  var random: SeededRandom
  var sum: UInt64 = 0xcbf2_9ce4_8422_2325
  var done: UInt64 = 0
  var granted: UInt64 = 0
  var refused: UInt64 = 0
  var broken: StaticString?
  let slots: UnsafeMutablePointer<Slot>
  /// Slots in use are the first ones.
  var used = 0
  /// Memory for what a kind needs besides, aligned to 64.
  let extra: UnsafeMutableRawPointer

  static var capacity: Int { 512 }
  private static var slotBytes: Int { capacity * MemoryLayout<Slot>.stride }

  /// Bytes that a history needs to remember what it holds.
  public static var workspace: ByteCount { ByteCount(slotBytes + 4 * 4096) }

  private init(_ plan: HistoryPlan, _ system: MemorySystem, _ workspace: UnsafeMutableRawPointer) {
    self.plan = plan
    self.system = system
    random = SeededRandom(seed: plan.seed)
    slots = workspace.bindMemory(to: Slot.self, capacity: Self.capacity)
    extra = workspace + Self.slotBytes
  }

  /// Runs the history to its end, or until an invariant is broken. `workspace` has `workspace` bytes, aligned to 64,
  /// and is no part of the instance. What was asked for is given back.
  public static func run(
    _ plan: HistoryPlan, on system: MemorySystem, workspace: UnsafeMutableRawPointer
  ) -> HistoryOutcome {
    var history = SeededHistory(plan, system, workspace)
    history.fold(UInt64(plan.kind.rawValue))
    switch plan.kind {
    case .buddy: history.runBuddy()
    case .runs: history.runRuns()
    case .vmem: history.runVmem()
    case .kernelSpace: history.runKernelSpace()
    case .kmem: history.runKmem()
    }
    return HistoryOutcome(
      checksum: history.sum, operations: history.done, granted: history.granted, refused: history.refused,
      broken: history.broken)
  }

  /// Memory of the machine that the standard histories run on.
  public static var memory: ByteCount { .mebibytes(64) }

  /// Brings up the instance that the standard histories run on, one after the other: `machine` has one
  /// processor and `memory` from physical address 0 on, its direct map begins at a multiple of 2 MiB and
  /// crosses none of 1 GiB, so that its page tables take the same frames everywhere. `workspace` is zeroed, has
  /// `MemorySystem.workspaceSize(ranges: 1)` bytes, is aligned to 64 and stays with the instance.
  public static func assemble(
    _ machine: Machine, workspace: UnsafeMutableRawPointer
  ) throws(AssemblyError) -> MemorySystem {
    try MemorySystem.assemble(
      BootRequest(machine: machine, workspace: workspace, firmwareRangeCount: 1),
      firmware: { _ in
        let low = ByteCount.mebibytes(1)
        return FirmwareRange(base: PhysicalAddress(low.rawValue), length: memory - low, kind: .usable)
      })
  }

  // MARK: For the kinds

  /// Takes a figure into the checksum.
  mutating func fold(_ value: UInt64) {
    sum = (sum ^ value) &* 0x0000_0100_0000_01b3
    sum ^= sum >> 29
  }

  /// A request that was refused; `why` is its error's number.
  mutating func refuse(_ why: UInt8) {
    refused += 1
    fold(0xdead_0000 | UInt64(why))
  }

  /// Notes that something does not hold; the first one stays.
  mutating func require(_ holds: Bool, _ invariant: StaticString) {
    if !holds && broken == nil { broken = invariant }
  }

  mutating func keep(_ slot: Slot) {
    (slots + used).initialize(to: slot)
    used += 1
    granted += 1
  }

  mutating func drop(_ index: Int) {
    used -= 1
    slots[index] = slots[used]
  }

  /// Whether the next operation asks for something; else it gives something back. Three in four do in a
  /// phase of growth, one in four in a phase of decline.
  mutating func grows() -> Bool {
    let isGrowing = done / 1024 % 2 == 0
    let asks = random.below(4) < (isGrowing ? 3 : 1)
    return used == 0 || (asks && used < Self.capacity - 1)
  }

  /// Runs `operation` as often as planned, and `check` in between.
  mutating func repeated(
    _ operation: (inout SeededHistory) -> Void, checking check: (MemorySystem) -> StaticString?
  ) {
    while done < plan.operations && broken == nil {
      operation(&self)
      done += 1
      if plan.checkEvery != 0 && done % plan.checkEvery == 0 { examine(check) }
    }
    if broken == nil { examine(check) }
  }

  mutating func examine(_ check: (MemorySystem) -> StaticString?) {
    if broken == nil, let invariant = check(system) { broken = invariant }
  }

  /// The offset of an address of the direct map.
  func offset(_ address: VirtualAddress) -> UInt64 {
    system.machine.directMap.physicalAddress(of: address).rawValue
  }
}
