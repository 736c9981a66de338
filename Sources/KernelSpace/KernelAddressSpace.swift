// Kernel space: an address, the frames behind it and the mapping, as one operation that succeeds or changes nothing.
//
// STRUCTURES
//   The arenas are those of illumos and FreeBSD: `kernel_va` holds all of the kernel's dynamic addresses. From it
//   import `heap_va` (kmem), `kernel_meta` (metadata) and `interrupt_va` (requests of interrupt handlers). Device
//   registers have a window of their own, `device_va`.
//   A range: an arena knows integers only. The page tables record the mappings there and their purpose, by a tag on the
//   first page of each range (`RangeKind`). So a free is checked against the tables, and no list is kept beside them.
//   Counters: pages and ranges of each kind, and failures.
//
// ORDER. To allocate: address, frames, mapping; a step that fails undoes those before it and throws. To free: the
// range is checked and unmapped, every processor invalidates it, the frames are freed, and only then is the address
// free again. So no request gets an address that a processor still translates to its old frame. Frames are zeroed
// through the direct map before they are mapped.
//
// ALIASES. A frame that is mapped other than write-back must not stay mapped write-back elsewhere (SDM vol. 3, 12.12.4:
// aliases of different types leave memory undefined). So the alias of such frames in the direct map gets the same
// attribute first, and its cache lines are written back. When the range is freed, the alias is write-back again before
// the frames are free. Setting the attribute may split leaves, and does so first. Setting it back finds the same
// boundaries, so it needs no table.
//
// INVARIANTS (checkInvariants, KernelAddressSpace+Invariants.swift)
//   KS-1  Each busy segment of an arena holds one range of the right kind, or belongs to an arena that imports, or is
//         pageable. A stack lies behind one page that is not mapped. Each page of a pageable range is prepared.
//   KS-2  The counts of pages by kind are those of the tables, and nothing else is mapped in these regions.
//   KS-3  The invariants of the page tables and of the arenas hold. The message has their number.
//
// LOCKS
//   None of its own. An operation calls the arenas, the page tables and physical memory one after the other, and two
//   callers meet only there. Counters are atomic. Nothing waits: a request fails at once.
//
// COST
//   A range of n pages: one segment, n frames singly, one step over the tables for 32 pages.
//
// EXHAUSTION
//   Without frames, tables or boundary tags a request throws `noMemory`, without addresses `noAddressSpace`; all is as
//   before. Freeing needs no memory.
//
// SOURCES
//   illumos, uts/common/os/vmem.c and i86pc/vm/seg_kmem.c; FreeBSD, sys/vm/vm_kern.c; Intel SDM vol. 3, 12.12.4.

import MemoryPrimitives
import PageTables
import PhysicalMemory
import Synchronization
import Vmem

/// Why a request failed. Nothing has changed.
@frozen public enum KernelSpaceError: UInt8, Error, Sendable {
  /// No frame for the memory itself, for a table or for boundary tags.
  case noMemory
  /// No free range of addresses is large enough.
  case noAddressSpace
  /// The request contradicts itself, or asks for memory that can't be mapped this way.
  case badConstraint
}

/// The addresses of the regions. Run-time values: the kernel may choose others.
public struct AddressLayout: Sendable {
  /// The first address of `kernel_va`.
  public var kernelBase = VirtualAddress(0xffff_c000_0000_0000)
  /// The size of `kernel_va`.
  public var kernelSize = ByteCount.gibibytes(32 << 10)
  /// The first address of the page windows of all processors.
  public var windowBase = VirtualAddress(0xffff_f000_0000_0000)
  /// The first address of the window for device registers.
  public var deviceBase = VirtualAddress(0xffff_f100_0000_0000)
  /// The size of that window.
  public var deviceSize = ByteCount.gibibytes(1 << 10)

  /// Creates the usual layout.
  public init() {}
}

/// Kernel addresses, and the memory behind them: a handle.
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

  /// The offsets of the parts of the memory that `create` gets.
  private struct Parts {
    let state: Int
    let counts: Int
    let tags: Int
    let kernel: Int
    let heap: Int
    let metadata: Int
    let interrupt: Int
    let device: Int
    let size: ByteCount

    init() {
      var layout = StorageLayout()
      state = layout.add(State.self)
      counts = layout.add(Atomic<UInt64>.self, count: countSlots)
      tags = layout.add(Tags.stateSize)
      kernel = layout.add(Arena.stateSize)
      heap = layout.add(Arena.stateSize)
      metadata = layout.add(Arena.stateSize)
      interrupt = layout.add(Arena.stateSize)
      device = layout.add(Arena.stateSize)
      size = layout.size
    }
  }

  /// Bytes that `create` needs, aligned to a cache line.
  package static var stateSize: ByteCount { Parts().size }

  /// Creates kernel space in `memory`, which it keeps. `staticTags` are pages for the arenas' first boundary tags,
  /// below 32 GiB, in the direct map. Two are enough to begin with; more come from `physical`. Throws `noMemory` when
  /// they are too few.
  ///
  /// `tables` hold the direct map already, and nothing in the regions of `layout`.
  package static func create(
    in memory: UnsafeMutableRawPointer, machine: Machine, physical: FrameAllocator, tables: PageMap,
    layout: AddressLayout = AddressLayout(), staticTags: UnsafeMutableRawPointer, _ staticPages: PageCount
  ) throws(KernelSpaceError) -> KernelAddressSpace {
    let parts = Parts()
    let state = memory.part(State.self, at: parts.state)
    let counts = memory.part(Atomic<UInt64>.self, at: parts.counts, count: countSlots)
    for i in 0..<countSlots { (counts + i).initialize(to: Atomic(0)) }
    let tags = Tags.create(
      in: memory + parts.tags, staticTags: staticTags, staticPages,
      source: tagSource(UnsafeMutableRawPointer(state), machine), machine: machine)
    let kernel = Arena.create(
      ArenaOptions(name: ShortName("kernel_va"), quantum: .page), in: memory + parts.kernel, tags: tags)
    func importing(_ name: StaticString, at offset: Int, unit: UInt64) -> Arena {
      Arena.create(
        ArenaOptions(
          name: ShortName(name), quantum: .page, source: .arena(kernel), importUnit: Alignment(unit)),
        in: memory + offset, tags: tags)
    }
    let heap = importing("heap_va", at: parts.heap, unit: 2 << 20)
    let metadata = importing("kernel_meta", at: parts.metadata, unit: 64 << 10)
    let interrupt = importing("interrupt_va", at: parts.interrupt, unit: 128 << 10)
    let device = Arena.create(
      ArenaOptions(name: ShortName("device_va"), quantum: .page), in: memory + parts.device, tags: tags)
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

  /// The source of pages for boundary tags: single frames below 32 GiB, which a link of 30 bits can reach.
  private static func tagSource(_ context: UnsafeMutableRawPointer, _ machine: Machine) -> TagSource {
    TagSource(
      base: VirtualAddress(machine.directMap.base), context,
      allocatePage: { context, priority in
        let state = context!.assumingMemoryBound(to: State.self)
        var reach = RunConstraints()
        reach.high = PhysicalAddress(32 << 30)
        do throws(PhysicalMemoryError) {
          let run = try state.pointee.physical.allocateUnlogged(
            run: .one, where: reach, role: .tags,
            priority: AllocationPriority(rawValue: priority) ?? .normal,
            for: FrameOwner("Vmem, boundary tags"))
          return state.pointee.machine.directMap.pointer(to: run.first)
        } catch {
          return nil
        }
      },
      freePage: { context, page in
        let state = context!.assumingMemoryBound(to: State.self)
        let frame = state.pointee.machine.directMap.physicalAddress(of: VirtualAddress(page)).frame
        state.pointee.physical.free(FrameRun(first: frame, count: .one))
      })
  }

  var machine: Machine { state.pointee.machine }
  package var tables: PageMap { state.pointee.tables }
  var physical: FrameAllocator { state.pointee.physical }

  // MARK: Arenas

  /// The supply of boundary tags, which knows all arenas that use it.
  public var tags: Tags { state.pointee.tags }
  /// All of the kernel's dynamic addresses: pageable ranges and large ones come from here.
  public var kernelArena: Arena { state.pointee.kernel }
  /// The window for device registers.
  public var deviceArena: Arena { state.pointee.device }
  /// The addresses of the regions.
  package var layout: AddressLayout { state.pointee.layout }

  /// An arena that wired memory gets its addresses from.
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

// All state behind a handle is under a lock, atomic, or belongs to one processor.
extension KernelAddressSpace: @unchecked Sendable {}
