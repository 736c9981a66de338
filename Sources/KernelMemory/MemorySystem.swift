// The memory of a kernel, assembled: one call that brings the layers up in order, and the handle that a
// kernel keeps.
//
// ORDER (what each step may rely on)
//   1  the firmware's map is sanitised: sorted runs of whole frames, less what is carved out
//   2  early memory hands out pages of it, never what somebody occupies, only below 4 GiB
//   3  the records of all frames are reserved at the top of memory, not touched
//   4  the final page tables are built and made current: from here all memory can be reached, that set
//      aside too, and what the loader had mapped at address 0 is gone
//   5  physical memory opens: early memory's pages and what was occupied keep their roles, all else
//      is free
//   6  kernel space, kmem, paging, contiguous memory and the table of statistics take what they need from there
//
// A step that fails ends the assembly; the machine is too small then, and nothing runs on it anyway.
// Nothing here touches each frame, so a machine of 20 GiB comes up in little more than one of 256 MiB.
//
// An instance is a value of handles: copying it copies nothing, and several live side by side, each
// over memory of its own.

import ContiguousMemory
import Kmem
import KernelSpace
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Vmem

/// Why the layers did not come up.
@frozen public enum AssemblyError: UInt8, Error, Sendable {
  /// The firmware's map holds no usable memory, none in one run for the frame records, or nothing
  /// besides.
  case tooSmall
  /// More occupied ranges than boot can keep apart.
  case tooManyRanges

  public var description: StaticString {
    switch self {
    case .tooSmall: "the machine is too small: it has no room for the records of its own memory"
    case .tooManyRanges: "the loader left more modules than boot can keep apart"
    }
  }
}

/// What a machine brings along at boot.
public struct BootRequest {
  public var machine: Machine
  /// Zeroed memory of `MemorySystem.workspaceSize`, for the firmware's ranges and those carved out, aligned
  /// to 64 bytes, that the instance keeps.
  public var workspace: UnsafeMutableRawPointer
  public var firmwareRangeCount: Int
  /// What the image, modules and the loader's leftovers occupy.
  public var occupied: UnsafeBufferPointer<OccupiedRange> = .init(start: nil, count: 0)
  /// What is left out although the firmware calls it usable. Memory that is no PC's has rules of its own.
  public var rules = MapRules()
  /// Memory that the instance is not to own, whatever the firmware's map says of it: reserved, but mapped
  /// in the direct map, readable and writable.
  public var carveOut = CarveOut()
  /// The image's segments; none where nothing runs from this memory.
  public var image: KernelImage = .init(start: nil, count: 0)
  public var levels: PagingLevels = .four
  public var largestLeaf: LargestLeaf = .mebibytes2
  public var layout = AddressLayout()

  public init(machine: Machine, workspace: UnsafeMutableRawPointer, firmwareRangeCount: Int) {
    self.machine = machine
    self.workspace = workspace
    self.firmwareRangeCount = firmwareRangeCount
  }
}

/// Memory that is somebody's before boot has begun.
public struct OccupiedRange: Sendable {
  public var base: PhysicalAddress
  public var length: ByteCount
  public var role: FrameRole

  public init(base: PhysicalAddress, length: ByteCount, role: FrameRole) {
    self.base = base
    self.length = length
    self.role = role
  }
}

/// One memory system: the layers, and the figures that they keep.
public struct MemorySystem {
  public let machine: Machine
  /// The firmware's map as it was taken.
  public let map: MemoryMap
  /// What the boot request carved out: nobody's here, and reached by the direct map.
  public let carveOut: CarveOut
  public let physical: FrameAllocator
  public let pageTables: PageMap
  public let space: KernelAddressSpace
  public let kmem: KmemAllocator
  /// Memory objects, pageable ranges, swap.
  public let paging: PagedMemory
  /// Runs of frames, emptied for whoever needs one.
  public let contiguous: ContiguousAllocator
  public let statistics: Statistics
  /// The last requests that a layer refused.
  public let failures: FailureLog

  /// Bytes of workspace for a firmware map of `ranges` ranges, each run carved out counted as one.
  public static func workspaceSize(ranges: Int) -> ByteCount {
    earlyOffset(ranges) + EarlyMemory.storage
  }

  private static func earlyOffset(_ ranges: Int) -> ByteCount {
    ByteCount((MemoryMap.storage(ranges: ranges).rawValue + 63) & ~63)
  }

  /// Brings up all layers. `range` tells the firmware's ranges one by one, in any order; `activate`
  /// makes the final page tables current, given the address of their root.
  ///
  /// About a million instructions for 256 MiB; one processor, interrupts off or harmless.
  public static func assemble(
    _ request: BootRequest, firmware range: (Int) -> FirmwareRange,
    activate: (PhysicalAddress) -> Void = { _ in }
  ) throws(AssemblyError) -> MemorySystem {
    let told = request.firmwareRangeCount
    let carveOut = request.carveOut
    let count = told + carveOut.count
    let map = try orTooSmall { () throws(PhysicalMemoryError) in
      try MemoryMap(request.workspace, count: count, rules: request.rules) {
        $0 < told ? range($0) : carveOut.firmwareRange($0 - told)
      }
    }
    let early = EarlyMemory(
      request.workspace + Int(earlyOffset(count).rawValue), machine: request.machine, map: map,
      ceiling: PhysicalAddress(1 << 32))
    for taken in request.occupied {
      do throws(PhysicalMemoryError) {
        try early.occupy(taken.base, taken.length, role: taken.role)
      } catch {
        throw .tooManyRanges
      }
    }
    let records = try orTooSmall { () throws(PhysicalMemoryError) in
      try FrameAllocator.reserveRecords(of: map, from: early)
    }
    let rooms = try Rooms(early, request.machine)
    let failures = FailureLog(rooms.failures)
    let machine = request.machine.logging(to: failures)
    let tables = try orTooSmall { () throws(PageTableError) in
      try buildTables(request, map, early, rooms.tables)
    }
    activate(tables.root)
    early.liftCeiling()
    let physical = FrameAllocator.open(machine: machine, map: map, early: early, records: records)
    guard physical.freeCount > .zero else { throw .tooSmall }
    tables.setSource(physical.frameSource(role: .pageTable, priority: .system))
    let space = try orTooSmall { () throws(KernelSpaceError) in
      try KernelAddressSpace.create(
        in: rooms.space, machine: machine, physical: physical, tables: tables, layout: request.layout,
        staticTags: rooms.tags, Rooms.tagPages)
    }
    rooms.handle.initialize(to: space)
    let kmem = KmemAllocator.create(
      in: rooms.kmem, physical: physical, large: KernelAddressSpace.largePages(rooms.handle), machine: machine
    )
    let paging = try orTooSmall { () throws(PagingError) in
      try PagedMemory.create(
        in: rooms.paging, machine: machine, physical: physical, tables: tables, space: space, kmem: kmem)
    }
    let contiguous = ContiguousAllocator.create(
      in: rooms.contiguous, machine: machine, physical: physical, space: space, kmem: kmem, paging: paging)
    let statistics = Statistics(rooms.statistics, capacity: Rooms.statisticsCapacity)
    map.register(in: statistics)
    physical.register(in: statistics)
    tables.register(in: statistics)
    space.register(in: statistics)
    space.tags.register(in: statistics)
    kmem.register(in: statistics)
    paging.register(in: statistics)
    contiguous.register(in: statistics)
    return MemorySystem(
      machine: machine, map: map, carveOut: carveOut, physical: physical, pageTables: tables, space: space,
      kmem: kmem, paging: paging, contiguous: contiguous, statistics: statistics, failures: failures)
  }

  /// Lets threads of the machine do what otherwise whoever runs short must do himself: page daemon, laundry, and
  /// the trimming of caches. False when the machine has not all of them to give; those that there are run.
  @discardableResult public func startServices() -> Bool {
    let isPaging = paging.startServices()
    return kmem.startTrimming() && isPaging
  }

  /// Ends these threads and waits until they are gone: before what they work on goes.
  public func endServices() {
    paging.endServices()
    kmem.endTrimming()
  }

  /// What goes wrong on the way up has one cause.
  private static func orTooSmall<T, E>(_ step: () throws(E) -> T) throws(AssemblyError) -> T {
    do throws(E) { return try step() } catch { throw .tooSmall }
  }

  /// The image, the direct map of all memory with the largest leaves, and write protection for the
  /// aliases that the image has in it. Address 0 stays unmapped, and so does what lies between the ranges of
  /// the map and was not carved out.
  private static func buildTables(
    _ request: BootRequest, _ map: MemoryMap, _ early: EarlyMemory, _ room: UnsafeMutableRawPointer
  ) throws(PageTableError) -> PageMap {
    let tables = try PageMap(
      in: room, machine: request.machine, levels: request.levels, largestLeaf: request.largestLeaf,
      frames: early.frameSource)
    try tables.mapImage(request.image)
    for index in 0..<map.count {
      try tables.mapDirect(map[index].first.address, count: map[index].count)
    }
    for index in 0..<request.carveOut.count {
      let run = request.carveOut[index]
      try tables.mapDirect(run.first.address, count: run.count)
    }
    try tables.protectAliases(of: request.image)
    return tables
  }

  /// What this instance took for itself: every frame that is neither free nor a file of the loader's.
  public var footprint: ByteCount {
    (physical.total - physical.freeCount - physical.count(.bootModule)).bytes
  }

  /// The first invariant that is broken on any layer, or nil. Exact when nothing else runs; n log n.
  public func checkInvariants() -> StaticString? {
    physical.checkInvariants() ?? space.checkInvariants() ?? kmem.checkInvariants()
      ?? paging.checkInvariants()
  }
}

/// Where the layers above physical memory keep their state: early pages, so that they are there before
/// anything can be allocated, and below 4 GiB, where boundary tags must lie.
private struct Rooms {
  let tables: UnsafeMutableRawPointer
  let space: UnsafeMutableRawPointer
  /// For the handle of kernel space, behind its state: what kmem's large requests are given through.
  let handle: UnsafeMutablePointer<KernelAddressSpace>
  let kmem: UnsafeMutableRawPointer
  let paging: UnsafeMutableRawPointer
  let contiguous: UnsafeMutableRawPointer
  let tags: UnsafeMutableRawPointer
  let statistics: UnsafeMutableRawPointer
  let failures: UnsafeMutableRawPointer

  static var tagPages: PageCount { PageCount(UInt64(2)) }
  static var statisticsCapacity: Int { 224 }

  init(_ early: EarlyMemory, _ machine: Machine) throws(AssemblyError) {
    func take(_ size: ByteCount, _ role: FrameRole) throws(AssemblyError) -> UnsafeMutableRawPointer {
      guard let run = early.take(size.pagesRoundedUp, role: role) else { throw .tooSmall }
      let room = machine.directMap.pointer(to: run.first)
      room.initializeMemory(as: UInt64.self, repeating: 0, count: Int(run.count.bytes.rawValue) / 8)
      return room
    }
    tables = try take(PageMap.stateSize, .boot)
    let stateSize = ByteCount((KernelAddressSpace.stateSize.rawValue + 63) & ~63)
    space = try take(stateSize + ByteCount(MemoryLayout<KernelAddressSpace>.size), .boot)
    handle = (space + Int(stateSize.rawValue)).bindMemory(to: KernelAddressSpace.self, capacity: 1)
    kmem = try take(KmemAllocator.size(processors: machine.processorCount), .boot)
    let pagingSize = ByteCount((PagedMemory.stateSize.rawValue + 63) & ~63)
    paging = try take(pagingSize + ContiguousAllocator.stateSize, .boot)
    contiguous = paging + Int(pagingSize.rawValue)
    tags = try take(Self.tagPages.bytes, .tags)
    statistics = try take(Statistics.size(capacity: Self.statisticsCapacity), .statistics)
    failures = try take(FailureLog.size, .statistics)
  }
}
