// Kernel space: an address, the frames behind it and the mapping, as one operation that succeeds or
// changes nothing.
//
// The arenas are those of illumos and FreeBSD: `kernel_va` holds all of the kernel's dynamic addresses, and
// from it import `heap_va` (kmem), `kernel_meta` (metadata) and `interrupt_va` (what interrupt handlers
// ask for); device registers have a window of their own. An arena knows integers; what is mapped there,
// and what for, is recorded by the page tables, by a tag on the first page of each range (`RangeKind`).
// So a free is checked against what holds, and nothing has to be kept beside.
//
// ORDER. To allocate: address, frames, mapping; what fails is undone backwards and the error passed on. To
// free: the range is unmapped (which checks it first), every processor forgets it, the frames go
// back, and only then is the address free again: nobody can get an address that some processor still
// translates to its old frame. Frames are zeroed through the direct map before they are mapped.
//
// ALIASES. A frame that is mapped other than write-back must not stay mapped write-back elsewhere (SDM
// vol. 3, 12.12.4: aliases of different types leave memory undefined). So the alias of such frames in
// the direct map gets the same attribute first, the lines are written back, and when the range goes
// the alias is write-back again before anybody else can have the frames. Setting the attribute may split
// leaves, and does so first; setting it back meets the same boundaries, so it needs nothing.
//
// LAWS (checkInvariants)
//   1. Each busy segment of an arena holds one range of the right kind (a stack behind one page that is
//      not mapped), or belongs to an arena that imports, or is pageable: each page prepared, some mapped.
//   2. The counts of pages by kind are those of the tables, and nothing else is mapped in these regions.
//   3. The invariants of the arenas and of the page tables hold.
//
// LOCKS. None of its own: the arenas, the page tables and physical memory are called one after the
// other, and two callers meet only there. Counts are atomic. Nothing waits: a request fails at once.
//
// COST. A range of n pages: one segment, n frames singly, one step over the tables for 32 pages.

import CPlatform
import MemoryPrimitives
import PageTables
import PhysicalMemory
import Synchronization
import Vmem

/// Why a request was not granted. Nothing was changed.
@frozen public enum KernelSpaceError: UInt8, Error, Sendable {
  /// No frame for the memory itself, for a table or for boundary tags.
  case noMemory
  /// No free range of addresses is large enough.
  case noAddressSpace
  /// The request contradicts itself, or asks for memory that can't be had so.
  case badConstraint
}

/// Where the regions lie. Run-time values: the kernel may place them elsewhere.
public struct AddressLayout: Sendable {
  public var kernelBase = VirtualAddress(0xffff_c000_0000_0000)
  public var kernelSize = ByteCount.gibibytes(32 << 10)
  /// The window for device registers.
  public var deviceBase = VirtualAddress(0xffff_f100_0000_0000)
  public var deviceSize = ByteCount.gibibytes(1 << 10)

  public init() {}
}

/// The arena that wired memory takes its addresses from.
@frozen public enum WiredArena: UInt8, Sendable {
  /// kmem.
  case heap
  /// Metadata of the memory system.
  case metadata
  /// What interrupt handlers ask for.
  case interrupt
  /// Straight from `kernel_va`: large, long-lived ranges.
  case kernel
}

/// What a range is for, as its first page records.
@frozen public enum RangeKind: UInt8, Sendable {
  case heap = 1
  case metadata
  case interrupt
  case kernel
  case stack
  case device
  case contiguous
  case callerFrames
  case pageable

  /// The kind as the console says it.
  public var description: StaticString {
    switch self {
    case .heap: "wired, heap"
    case .metadata: "wired, metadata"
    case .interrupt: "wired, interrupt"
    case .kernel: "wired"
    case .stack: "stack"
    case .device: "device registers"
    case .contiguous: "contiguous"
    case .callerFrames: "given frames"
    case .pageable: "pageable"
    }
  }

  /// Calls `visit` with each kind.
  @inlinable public static func forEach<E>(_ visit: (RangeKind) throws(E) -> Void) throws(E) {
    for number in UInt8(1)...9 {
      if let kind = RangeKind(rawValue: number) { try visit(kind) }
    }
  }

  var tag: RangeTag { RangeTag(rawValue: rawValue) }
  init(_ arena: WiredArena) {
    switch arena {
    case .heap: self = .heap
    case .metadata: self = .metadata
    case .interrupt: self = .interrupt
    case .kernel: self = .kernel
    }
  }
}

/// What memory holds when it is handed out.
@frozen public enum InitialContents: UInt8, Sendable {
  /// Whatever was there.
  case unknown
  case zero
}

/// Kernel addresses, and what is behind them: a handle.
public struct KernelAddressSpace {
  struct State: ~Copyable {
    let machine: Machine
    let physical: FrameAllocator
    let tables: PageMap
    let tags: Tags
    let layout: AddressLayout
    let kernel: Arena
    let heap: Arena
    let metadata: Arena
    let interrupt: Arena
    let device: Arena
    /// Pages, then ranges, by `RangeKind`.
    let counts: UnsafeMutablePointer<Atomic<UInt64>>
    let failures = Atomic<UInt64>(0)
  }
  let state: UnsafeMutablePointer<State>

  private static var countSlots: Int { 32 }
  private static func rounded(_ size: Int) -> Int { (size + 63) & ~63 }
  private static var arenaSize: Int { rounded(Int(Arena.stateSize.rawValue)) }

  /// Bytes that `create` needs, aligned to 64.
  public static var stateSize: ByteCount {
    ByteCount(
      rounded(MemoryLayout<State>.size) + rounded(countSlots * 8)
        + rounded(Int(Tags.stateSize.rawValue)) + 5 * arenaSize)
  }

  /// Brings kernel space up in `memory`, which it keeps. `staticTags` are pages that the arenas'
  /// first boundary tags lie in (reached by the direct map, below 32 GiB); two are enough to
  /// begin with, more come from `physical`. Fails when there are too few.
  ///
  /// `tables` hold the direct map already, and nothing in the regions of `layout`.
  public static func create(
    in memory: UnsafeMutableRawPointer, machine: Machine, physical: FrameAllocator, tables: PageMap,
    layout: AddressLayout = AddressLayout(), staticTags: UnsafeMutableRawPointer, _ staticPages: PageCount
  ) throws(KernelSpaceError) -> KernelAddressSpace {
    var at = memory
    func place(_ size: Int) -> UnsafeMutableRawPointer {
      defer { at += rounded(size) }
      return at
    }
    let state = place(MemoryLayout<State>.size).bindMemory(to: State.self, capacity: 1)
    let counts = place(countSlots * 8).bindMemory(to: Atomic<UInt64>.self, capacity: countSlots)
    for i in 0..<countSlots { (counts + i).initialize(to: Atomic(0)) }
    let tags = Tags.create(
      in: place(Int(Tags.stateSize.rawValue)), staticTags: staticTags, staticPages,
      source: tagSource(UnsafeMutableRawPointer(state), machine), machine: machine)
    let kernel = Arena.create(
      in: place(arenaSize), name: Name("kernel_va"), quantum: .page, tags: tags, machine: machine)
    func importing(_ name: StaticString, _ unit: UInt64) -> Arena {
      Arena.create(
        in: place(arenaSize), name: Name(name), quantum: .page, tags: tags, source: .arena(kernel),
        importUnit: Alignment(unit), machine: machine)
    }
    let heap = importing("heap_va", 2 << 20)
    let metadata = importing("kernel_meta", 64 << 10)
    let interrupt = importing("interrupt_va", 128 << 10)
    let device = Arena.create(
      in: place(arenaSize), name: Name("device_va"), quantum: .page, tags: tags, machine: machine)
    state.initialize(
      to: State(
        machine: machine, physical: physical, tables: tables, tags: tags, layout: layout, kernel: kernel,
        heap: heap, metadata: metadata, interrupt: interrupt, device: device, counts: counts))
    do throws(VmemError) {
      try kernel.add(ArenaAddress(layout.kernelBase.rawValue), ArenaSize(layout.kernelSize.rawValue))
      try device.add(ArenaAddress(layout.deviceBase.rawValue), ArenaSize(layout.deviceSize.rawValue))
    } catch {
      throw KernelSpaceError(error)
    }
    return KernelAddressSpace(state: state)
  }

  /// Tags lie in single frames below 32 GiB, which a link of 30 bits can name.
  private static func tagSource(_ context: UnsafeMutableRawPointer, _ machine: Machine) -> TagSource {
    TagSource(
      base: VirtualAddress(machine.directMap.base), context,
      take: { context, priority in
        let state = context!.assumingMemoryBound(to: State.self)
        var reach = RunConstraints()
        reach.high = PhysicalAddress(32 << 30)
        do throws(PhysicalMemoryError) {
          let run = try state.pointee.physical.allocate(
            run: .one, where: reach, role: .tags, priority: AllocationPriority(rawValue: priority) ?? .normal)
          return state.pointee.machine.directMap.pointer(to: run.first)
        } catch {
          return nil
        }
      },
      give: { context, page in
        let state = context!.assumingMemoryBound(to: State.self)
        let frame = state.pointee.machine.directMap.physicalAddress(of: VirtualAddress(page)).frame
        state.pointee.physical.free(FrameRun(first: frame, count: .one))
      })
  }

  var machine: Machine { state.pointee.machine }
  var tables: PageMap { state.pointee.tables }
  var physical: FrameAllocator { state.pointee.physical }

  // MARK: Arenas

  /// The supply of boundary tags, which knows all arenas that draw on it.
  public var tags: Tags { state.pointee.tags }
  /// All of the kernel's dynamic addresses: pageable ranges and large ones come from here.
  public var kernelArena: Arena { state.pointee.kernel }
  /// The window for device registers.
  public var deviceArena: Arena { state.pointee.device }
  public var layout: AddressLayout { state.pointee.layout }

  /// An arena that wired memory takes addresses from.
  public func arena(_ arena: WiredArena) -> Arena {
    switch arena {
    case .heap: state.pointee.heap
    case .metadata: state.pointee.metadata
    case .interrupt: state.pointee.interrupt
    case .kernel: state.pointee.kernel
    }
  }

  func arena(_ kind: RangeKind) -> Arena {
    switch kind {
    case .heap: state.pointee.heap
    case .metadata: state.pointee.metadata
    case .interrupt: state.pointee.interrupt
    case .kernel, .stack, .contiguous, .callerFrames, .pageable: state.pointee.kernel
    case .device: state.pointee.device
    }
  }

  // MARK: Help

  /// Takes `pages` addresses for a range of `kind`.
  func reserve(
    _ kind: RangeKind, _ pages: PageCount, _ priority: AllocationPriority, _ site: CallSite,
    _ constraints: ArenaConstraints = ArenaConstraints()
  ) throws(KernelSpaceError) -> VirtualAddress {
    guard pages > .zero, pages.rawValue <= state.pointee.layout.kernelSize.rawValue >> Page.shift else {
      throw failed(pages > .zero ? .noAddressSpace : .badConstraint, kind, pages, priority, site)
    }
    if machine.failsHere(.kernelSpace) { throw failed(.noMemory) }
    let size = ArenaSize(pages.bytes.rawValue)
    do throws(VmemError) {
      switch kind {
      case .heap, .metadata, .interrupt:
        return VirtualAddress(try arena(kind).alloc(size, priority: priority, at: site).rawValue)
      default:
        return VirtualAddress(
          try arena(kind).xalloc(size, constraints, policy: .bestFit, priority: priority, at: site).rawValue)
      }
    } catch {
      throw failed(KernelSpaceError(error), kind, pages, priority, site)
    }
  }

  func giveBack(_ kind: RangeKind, _ address: VirtualAddress, _ pages: PageCount, _ site: CallSite) {
    let (first, size) = (ArenaAddress(address.rawValue), ArenaSize(pages.bytes.rawValue))
    switch kind {
    case .heap, .metadata, .interrupt: arena(kind).free(first, size, at: site)
    default: arena(kind).xfree(first, size, at: site)
    }
  }

  func note(_ kind: RangeKind, came pages: PageCount) {
    state.pointee.counts[Int(kind.rawValue)].add(pages.rawValue, ordering: .relaxed)
    state.pointee.counts[16 + Int(kind.rawValue)].add(1, ordering: .relaxed)
  }
  func note(_ kind: RangeKind, went pages: PageCount) {
    state.pointee.counts[Int(kind.rawValue)].subtract(pages.rawValue, ordering: .relaxed)
    state.pointee.counts[16 + Int(kind.rawValue)].subtract(1, ordering: .relaxed)
  }
  /// Counts and notes a refusal. What kmem asked for, by the arenas of its own, kmem notes.
  func failed(
    _ error: KernelSpaceError, _ kind: RangeKind, _ pages: PageCount, _ priority: AllocationPriority,
    _ site: CallSite
  ) -> KernelSpaceError {
    if kind != .heap && kind != .interrupt {
      func request() -> RefusedRequest {
        let reason: StaticString =
          switch error {
          case .noMemory: "no memory"
          case .noAddressSpace: "no addresses"
          case .badConstraint: "never"
          }
        var request = RefusedRequest(
          .space, pages.bytes, priority: priority, requester: Name(kind.description), reason: reason,
          free: physical.freeCount)
        request.site = site
        return request
      }
      machine.note(request())
    }
    return failed(error)
  }
  func failed(_ error: KernelSpaceError) -> KernelSpaceError {
    state.pointee.failures.add(1, ordering: .relaxed)
    return error
  }

  func free(_ start: PhysicalAddress, _ count: PageCount) {
    physical.free(FrameRun(first: start.frame, count: count))
  }
}

extension KernelSpaceError {
  init(_ error: VmemError) {
    switch error {
    case .noSpace: self = .noAddressSpace
    case .noTags: self = .noMemory
    case .badConstraint, .overlaps: self = .badConstraint
    }
  }
  init(_ error: PhysicalMemoryError) {
    switch error {
    case .badConstraint: self = .badConstraint
    default: self = .noMemory
    }
  }
}
