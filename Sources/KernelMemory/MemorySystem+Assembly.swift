// The assembly of an instance, step by step. The head of MemorySystem.swift has the order.

import ContiguousMemory
import Kmem
import KernelSpace
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Vmem
import Zsmalloc

extension MemorySystem {
  /// Bytes of workspace for a firmware map of `ranges` ranges; each run carved out counts as one.
  public static func workspaceSize(ranges: Int) -> ByteCount {
    workspaceLayout(ranges).size
  }

  private static func workspaceLayout(_ ranges: Int) -> (early: Int, size: ByteCount) {
    var layout = StorageLayout()
    _ = layout.add(MemoryMap.storage(ranges: ranges))
    let early = layout.add(EarlyMemory.storage)
    return (early, layout.size)
  }

  /// Brings up all layers. `range` returns the firmware's ranges one by one, in any order. `activate` makes the final
  /// page tables current, given the address of their root.
  ///
  /// About a million instructions for 256 MiB. One processor runs it, with interrupts off, or on with handlers that use
  /// no part of the instance.
  public static func assemble(
    _ request: BootRequest, firmware range: (Int) -> FirmwareRange, activate: (PhysicalAddress) -> Void
  ) throws(AssemblyError) -> MemorySystem {
    try assemble(request, range) {
      activate($0.root)
      $0.windows.recordLoaded()
    }
  }

  /// Brings up all layers over page tables that no processor loads: a system in a host process, or a second one in a
  /// kernel.
  public static func assemble(
    _ request: BootRequest, firmware range: (Int) -> FirmwareRange
  ) throws(AssemblyError) -> MemorySystem {
    try assemble(request, range) { _ in }
  }

  private static func assemble(
    _ request: BootRequest, _ range: (Int) -> FirmwareRange, _ activate: (PageMap) -> Void
  ) throws(AssemblyError) -> MemorySystem {
    let firmwareCount = request.firmwareRangeCount
    let carveOut = request.carveOut
    let count = firmwareCount + carveOut.count
    let map = try orTooSmall { () throws(PhysicalMemoryError) in
      try MemoryMap(request.workspace, count: count, rules: request.rules) {
        $0 < firmwareCount ? range($0) : carveOut.firmwareRange($0 - firmwareCount)
      }
    }
    let early = EarlyMemory(
      request.workspace + workspaceLayout(count).early, machine: request.machine, map: map,
      ceiling: PhysicalAddress(1 << 32))
    for range in request.occupied {
      do throws(PhysicalMemoryError) {
        try early.occupy(range.base, range.length, role: range.role)
      } catch {
        throw .tooManyRanges
      }
    }
    let records = try orTooSmall { () throws(PhysicalMemoryError) in
      try FrameAllocator.reserveRecords(of: map, from: early)
    }
    let storage = try LayerStorage(early, request.machine)
    let failures = FailureLog(storage.failures)
    let machine = request.machine.logging(to: failures)
    let tables = try orTooSmall { () throws(PageTableError) in
      try buildTables(request, map, early, in: storage.tables)
    }
    activate(tables)
    early.liftCeiling()
    let physical = FrameAllocator.open(machine: machine, map: map, early: early, records: records)
    guard physical.freeCount > .zero else { throw .tooSmall }
    tables.setSource(physical.frameSource(role: .pageTable, priority: .system))
    let space = try orTooSmall { () throws(KernelSpaceError) in
      try KernelAddressSpace.create(
        in: storage.space, machine: machine, physical: physical, tables: tables, layout: request.layout,
        staticTags: storage.tags, LayerStorage.tagPages)
    }
    storage.handle.initialize(to: space)
    let kmem = KmemAllocator.create(
      in: storage.kmem, physical: physical, large: KernelAddressSpace.largePages(storage.handle),
      machine: machine
    )
    let paging = try orTooSmall { () throws(PagingError) in
      try PagedMemory.create(
        in: storage.paging, machine: machine, physical: physical, tables: tables, space: space, kmem: kmem,
        registered: storage.pagingObjects)
    }
    let compressed = CompressedPages.create(
      in: storage.compressed,
      store: ZspageAllocator.create(
        in: storage.zspages, machine: machine, physical: physical, space: space))
    let contiguous = ContiguousAllocator.create(
      in: storage.contiguous, machine: machine, physical: physical, space: space, kmem: kmem, paging: paging,
      zspages: compressed.store)
    let statistics = Statistics(storage.statistics, capacity: LayerStorage.statisticsCapacity)
    let system = MemorySystem(
      machine: machine, map: map, carveOut: carveOut, physical: physical, pageTables: tables, space: space,
      kmem: kmem, paging: paging, contiguous: contiguous, compressed: compressed, statistics: statistics,
      failures: failures)
    system.registerStatistics()
    return system
  }

  /// Adds the rows of all layers.
  private func registerStatistics() {
    map.register(in: statistics)
    physical.register(in: statistics)
    pageTables.register(in: statistics)
    space.register(in: statistics)
    space.tags.register(in: statistics)
    kmem.register(in: statistics)
    paging.register(in: statistics)
    contiguous.register(in: statistics)
    compressed.register(in: statistics)
  }

  /// Runs a step of the assembly; a failure of any of them means that the machine is too small.
  private static func orTooSmall<T, E>(_ step: () throws(E) -> T) throws(AssemblyError) -> T {
    do throws(E) { return try step() } catch { throw .tooSmall }
  }

  /// Maps the image and the direct map of all memory, with the largest leaves, and write-protects the aliases that the
  /// image has in it. Prepares the page windows. Address 0 stays unmapped, and so do addresses outside the ranges of
  /// the map and the carve-out.
  private static func buildTables(
    _ request: BootRequest, _ map: MemoryMap, _ early: EarlyMemory, in memory: UnsafeMutableRawPointer
  ) throws(PageTableError) -> PageMap {
    let tables = try PageMap(
      in: memory, machine: request.machine, levels: request.levels, largestLeaf: request.largestLeaf,
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
    tables.setSource(early.windowFrameSource)
    try tables.prepareWindows(at: request.layout.windowBase)
    return tables
  }
}

/// Memory for the state of the layers above physical memory: early pages, so that it exists before any layer can
/// allocate, and below 4 GiB, where boundary tags must lie.
private struct LayerStorage {
  let tables: UnsafeMutableRawPointer
  let space: UnsafeMutableRawPointer
  /// For the handle of kernel space, behind its state: kmem's large requests read it.
  let handle: UnsafeMutablePointer<KernelAddressSpace>
  let kmem: UnsafeMutableRawPointer
  let paging: UnsafeMutableRawPointer
  let pagingObjects: RegisteredPagingObjects
  let contiguous: UnsafeMutableRawPointer
  let zspages: UnsafeMutableRawPointer
  let compressed: UnsafeMutableRawPointer
  let tags: UnsafeMutableRawPointer
  let statistics: UnsafeMutableRawPointer
  let failures: UnsafeMutableRawPointer

  static var tagPages: PageCount { 2 }
  static var statisticsCapacity: Int { 232 }

  init(_ early: EarlyMemory, _ machine: Machine) throws(AssemblyError) {
    func allocate(
      _ size: ByteCount, _ role: FrameRole, _ purpose: StaticString
    ) throws(AssemblyError) -> UnsafeMutableRawPointer {
      let owner = FrameOwner(purpose)
      guard let run = early.allocate(size.pagesRoundedUp, role: role, for: owner) else { throw .tooSmall }
      let memory = machine.directMap.pointer(to: run.first)
      memory.initializeMemory(as: UInt64.self, repeating: 0, count: Int(run.count.bytes.rawValue) / 8)
      return memory
    }
    tables = try allocate(
      PageMap.stateSize(processors: machine.processorCount), .boot, "PageTables, state")
    var spaceLayout = StorageLayout()
    let spaceOffset = spaceLayout.add(KernelAddressSpace.stateSize)
    let handleOffset = spaceLayout.add(KernelAddressSpace.self)
    let spaceMemory = try allocate(spaceLayout.size, .boot, "KernelSpace, state")
    space = spaceMemory + spaceOffset
    handle = spaceMemory.part(KernelAddressSpace.self, at: handleOffset)
    kmem = try allocate(
      KmemAllocator.size(processors: machine.processorCount), .boot, "Kmem, state")
    var pagingLayout = StorageLayout()
    let pagingOffset = pagingLayout.add(PagedMemory.stateSize)
    let contiguousOffset = pagingLayout.add(ContiguousAllocator.stateSize)
    let zspagesOffset = pagingLayout.add(ZspageAllocator.stateSize)
    let compressedOffset = pagingLayout.add(CompressedPages.stateSize)
    guard let pagingObjects = RegisteredPagingObjects(from: early, directMap: machine.directMap) else {
      throw .tooSmall
    }
    self.pagingObjects = pagingObjects
    let pagingMemory = try allocate(pagingLayout.size, .boot, "Paging, Zsmalloc and ContiguousMemory, state")
    paging = pagingMemory + pagingOffset
    contiguous = pagingMemory + contiguousOffset
    zspages = pagingMemory + zspagesOffset
    compressed = pagingMemory + compressedOffset
    tags = try allocate(Self.tagPages.bytes, .tags, "Vmem, boundary tags")
    statistics = try allocate(
      Statistics.size(capacity: Self.statisticsCapacity), .statistics, "the statistics registry")
    failures = try allocate(FailureLog.size, .statistics, "the failure log")
  }
}
