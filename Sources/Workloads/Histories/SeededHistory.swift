// Seeded histories: long random sequences of operations on one layer of a live system, which depend on
// their seed only and end with a checksum.
//
// XCTest runs them on the host, `selftest history` runs them in the kernel on a second instance of the same size. The
// checksums must be equal: so both run one core. The checksum covers frame numbers, offsets, sizes and states. It
// covers no pointer (but offsets from the base of the direct map or of an arena), no call site, no time, and no
// figure that waiting could change. Both instances need the same memory, the same features of page tables and one
// processor, and no other user.
//
// A table of slots, in memory of the caller, has the resources that a history holds. Phases of growth and of decline
// alternate, so that memory runs out now and then and is freed again. Each result is checked (alignment, ranges,
// zeroes, stamps), and the layer's invariants at regular intervals. At the end everything is freed, and all counts
// must be as at the beginning.

import KernelMemory
import MemoryPrimitives
import PhysicalMemory

/// The layer of a history.
package enum HistoryKind: UInt8, Sendable {
  case buddy, runs, vmem, kernelSpace, kmem

  package static var count: Int { 5 }

  package var description: StaticString {
    switch self {
    case .buddy: "buddy"
    case .runs: "runs"
    case .vmem: "vmem"
    case .kernelSpace: "kernel space"
    case .kmem: "kmem"
    }
  }
}

/// The plan of a history.
package struct HistoryPlan: Sendable {
  package var kind: HistoryKind
  package var seed: UInt64
  package var operations: UInt64
  /// The operations between two checks of the layer's invariants; zero for a check at the end only.
  package var checkEvery: UInt64

  package init(_ kind: HistoryKind, seed: UInt64, operations: UInt64, checkEvery: UInt64 = 1000) {
    self.kind = kind
    self.seed = seed
    self.operations = operations
    self.checkEvery = checkEvery
  }
}

extension HistoryPlan {
  /// The plan of `selftest history`, and of the test that compares it with the host.
  package static func standard(_ kind: HistoryKind) -> HistoryPlan {
    HistoryPlan(kind, seed: 0x5354_5241_5441, operations: 5000)
  }
}

/// The outcome of a history.
package struct HistoryOutcome: Sendable {
  package var checksum: UInt64
  package var operations: UInt64
  /// Requests that were granted.
  package var granted: UInt64
  /// Requests that were refused.
  package var refused: UInt64
  /// The invariant that was broken. Nil when all held.
  package var broken: StaticString?
}

/// A history while it runs. A plain value: one caller, one processor.
package struct SeededHistory {
  /// A resource that the history holds: each kind has its own meanings.
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
  /// More memory for the kind's own use, aligned to a cache line.
  let extra: UnsafeMutableRawPointer

  static var capacity: Int { 512 }
  private static var slotBytes: Int { capacity * MemoryLayout<Slot>.stride }

  /// Bytes that a history needs for its slots.
  package static var workspace: ByteCount { ByteCount(slotBytes + 4 * 4096) }

  private init(_ plan: HistoryPlan, _ system: MemorySystem, _ workspace: UnsafeMutableRawPointer) {
    self.plan = plan
    self.system = system
    random = SeededRandom(seed: plan.seed)
    slots = workspace.bindMemory(to: Slot.self, capacity: Self.capacity)
    extra = workspace + Self.slotBytes
  }

  /// Runs the history to its end, or until an invariant is broken. `workspace` has `workspace` bytes, aligned to a
  /// cache line, and is no part of the instance. At the end everything is freed.
  package static func run(
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
  package static var memory: ByteCount { .mebibytes(64) }

  /// Brings up the instance that the standard histories run on, one after the other. `machine` has one processor, and
  /// `memory` from physical address 0 on. Its direct map begins at a multiple of 2 MiB and crosses no multiple of 1
  /// GiB, so that its page tables use the same frames everywhere. `workspace` is zeroed, has
  /// `MemorySystem.workspaceSize(ranges: 1)` bytes, is aligned to a cache line, and stays with the instance.
  package static func assemble(
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

  /// Adds a figure to the checksum.
  mutating func fold(_ value: UInt64) {
    sum = (sum ^ value) &* 0x0000_0100_0000_01b3
    sum ^= sum >> 29
  }

  /// Counts a request that was refused; `why` is its error's number.
  mutating func countRefusal(_ why: UInt8) {
    refused += 1
    fold(0xdead_0000 | UInt64(why))
  }

  /// Records an invariant that does not hold; the first record stays.
  mutating func require(_ holds: Bool, _ invariant: StaticString) {
    if !holds && broken == nil { broken = invariant }
  }

  mutating func record(_ slot: Slot) {
    (slots + used).initialize(to: slot)
    used += 1
    granted += 1
  }

  mutating func remove(_ index: Int) {
    used -= 1
    slots[index] = slots[used]
  }

  /// Whether the next operation requests a resource; else it frees one. Three in four are requests in a phase of
  /// growth, one in four in a phase of decline.
  mutating func grows() -> Bool {
    let isGrowing = done / 1024 % 2 == 0
    let asks = random.below(4) < (isGrowing ? 3 : 1)
    return used == 0 || (asks && used < Self.capacity - 1)
  }

  /// Runs `operation` as often as planned, and `check` at its intervals.
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
