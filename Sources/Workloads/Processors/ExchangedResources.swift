// Resources of every layer, allocated by one processor and freed by another. A table of slots holds their addresses.
// A turn allocates a resource, or none, and exchanges it for the contents of some slot. The worker that removes a
// resource from a slot owns it, and frees it.
//
// A resource is stamped all over, by the words of its memory. A part of an identifier arena is stamped in a table
// with the owner of each value. Two owners of one word find each other's stamps. Mapped memory is stamped and checked
// through the processor's translations, all other memory through the direct map.

import ContiguousMemory
import Kmem
import KernelMemory
import KernelSpace
import MemoryPrimitives
import Paging
import PhysicalMemory
import Synchronization
import Vmem

/// The table, and the layers that its resources come from: a handle.
struct ExchangedResources {
  /// An object of kmem of its own.
  struct Resource {
    enum Kind: UInt8 { case object, block, identifiers, wired, stack, run, mappedRun }
    var kind: Kind
    /// An address; for identifiers the first of them.
    var address: UInt64
    /// In bytes; for identifiers how many.
    var size: UInt64
    var stamp: UInt64
  }

  private let memory: MemorySystem
  private let access: WordAccess
  private let slots: UnsafeMutablePointer<Atomic<UInt>>
  private let owners: UnsafeMutablePointer<Atomic<UInt64>>
  private let arena: Arena
  let type: MemoryType
  private let firstMapped: UInt64

  private static var slotCount: Int { 256 }
  private static var identifiers: Int { 2048 }

  /// The offsets of the parts of its memory.
  private struct Parts {
    let slots: Int
    let owners: Int
    let arena: Int
    let size: ByteCount

    init() {
      var layout = StorageLayout()
      slots = layout.add(Atomic<UInt>.self, count: slotCount)
      owners = layout.add(Atomic<UInt64>.self, count: identifiers)
      arena = layout.add(Arena.stateSize)
      size = layout.size
    }
  }

  /// Bytes that it needs, aligned to a cache line and zeroed.
  static var size: ByteCount { Parts().size }

  init(
    _ memory: MemorySystem, _ access: WordAccess, in storage: UnsafeMutableRawPointer
  ) throws(StressError) {
    let parts = Parts()
    self.memory = memory
    self.access = access
    type = memory.kmem.type(named: ShortName("stress"))
    firstMapped = memory.space.layout.kernelBase.rawValue
    slots = storage.part(Atomic<UInt>.self, at: parts.slots, count: Self.slotCount)
    for i in 0..<Self.slotCount { (slots + i).initialize(to: Atomic(0)) }
    owners = storage.part(Atomic<UInt64>.self, at: parts.owners, count: Self.identifiers)
    for i in 0..<Self.identifiers { (owners + i).initialize(to: Atomic(0)) }
    arena = Arena.create(
      ArenaOptions(name: ShortName("stress"), quantum: .byte, contents: .identifiers),
      in: storage + parts.arena,
      tags: memory.space.tags)
    do throws(VmemError) {
      try arena.add(ArenaAddress(0), ArenaSize(UInt64(Self.identifiers)))
    } catch {
      arena.destroy()
      throw .noMemory
    }
  }

  func end() { arena.destroy() }

  // MARK: Turns

  func exchange(_ worker: StressWorker) {
    // The table fills slowly, until memory or the table is full.
    let made = worker.oneIn(3) ? nil : make(worker)
    exchange(made, at: Int(worker.below(UInt64(Self.slotCount))), worker)
  }

  /// Empties the table.
  func freeAll(_ worker: StressWorker) {
    for slot in 0..<Self.slotCount { exchange(nil, at: slot, worker) }
  }

  private func exchange(_ resource: UnsafeMutablePointer<Resource>?, at slot: Int, _ worker: StressWorker) {
    let found = slots[slot].exchange(UInt(bitPattern: resource), ordering: .acquiringAndReleasing)
    worker.countOperation()
    if let found = UnsafeMutablePointer<Resource>(bitPattern: found) { free(found, worker) }
  }

  // MARK: Allocating

  private func make(_ worker: StressWorker) -> UnsafeMutablePointer<Resource>? {
    let size = ByteCount(MemoryLayout<Resource>.size)
    guard let object = memory.kmem.alloc(size, type: type) else {
      worker.countRefusal()
      return nil
    }
    guard let resource = allocate(worker) else {
      memory.kmem.free(object, size: size, type: type)
      worker.countRefusal()
      return nil
    }
    let pointer = object.bindMemory(to: Resource.self, capacity: 1)
    pointer.initialize(to: resource)
    stamp(resource, worker)
    return pointer
  }

  /// Allocates a resource of some layer; nil when the layer refuses it.
  private func allocate(_ worker: StressWorker) -> Resource? {
    func resource(_ kind: Resource.Kind, _ address: UInt64, _ size: UInt64) -> Resource {
      Resource(kind: kind, address: address, size: size, stamp: worker.stamp())
    }
    let map = memory.machine.directMap
    switch worker.below(12) {
    case 0..<5:
      let size = 8 + worker.below(1 << (4 + worker.below(11)))
      return object(size, worker).map { resource(.object, $0, size) }
    case 5, 6:
      let order = BlockOrder(UInt8(worker.below(worker.oneIn(8) ? 6 : 2)))
      guard let frame = try? memory.physical.allocate(order, role: .wired, for: FrameOwner("stress")) else {
        return nil
      }
      return resource(.block, map.virtualAddress(of: frame.address).rawValue, order.frames.bytes.rawValue)
    case 7:
      let count = 1 + worker.below(24)
      let policy: FitPolicy = worker.oneIn(3) ? .bestFit : .instantFit
      guard let first = try? arena.alloc(ArenaSize(count), policy: policy) else { return nil }
      return resource(.identifiers, first.rawValue, count)
    case 8, 9:
      let pages = PageCount(1 + worker.below(worker.oneIn(8) ? 40 : 6))
      let source: WiredArena = worker.oneIn(3) ? .kernel : worker.oneIn(2) ? .metadata : .heap
      guard
        let address = try? memory.space.allocateWired(
          pages, from: source, for: FrameOwner("stress"))
      else { return nil }
      return resource(.wired, address.rawValue, pages.bytes.rawValue)
    case 10:
      guard
        let stack = try? memory.space.allocateStack(
          PageCount(1 + worker.below(4)), for: FrameOwner("stress"))
      else { return nil }
      requireGuard(stack, worker)
      return resource(.stack, stack.bottom.rawValue, stack.count.bytes.rawValue)
    default:
      var request = ContiguousRequest(PageCount(1 + worker.below(1 << worker.below(6))))
      if worker.oneIn(2) { request.constraints.alignment = Alignment(Page.size << worker.below(5)) ?? .page }
      if worker.oneIn(3) { request.waitPolicy = .forbidden }
      if worker.oneIn(2) {
        guard let run = try? memory.contiguous.allocContig(request) else { return nil }
        return resource(
          .run, map.virtualAddress(of: run.first.address).rawValue, run.count.bytes.rawValue)
      }
      let bytes = request.count.bytes
      guard
        let range = try? memory.contiguous.contigmalloc(
          bytes, type: type, where: request.constraints, waitPolicy: request.waitPolicy)
      else { return nil }
      return resource(.mappedRun, range.address.rawValue, bytes.rawValue)
    }
  }

  private func object(_ size: UInt64, _ worker: StressWorker) -> UInt64? {
    guard worker.oneIn(4) else {
      return memory.kmem.alloc(ByteCount(size), type: type).map { UInt64(UInt(bitPattern: $0)) }
    }
    guard let object = memory.kmem.zalloc(ByteCount(size), type: type) else { return nil }
    let address = UInt64(UInt(bitPattern: object))
    forEachWord(address, size) { at, _ in
      let word = load(at, worker)
      worker.require(word == 0, "an object of zalloc is not zero", at, found: word)
    }
    return address
  }

  /// Checks that an access to the page below a stack faults.
  private func requireGuard(_ stack: KernelStack, _ worker: StressWorker) {
    let word = try? access.load(stack.guardPage)
    worker.require(word == nil, "a guard page can be read", stack.guardPage.rawValue, found: word ?? 0)
  }

  // MARK: Stamps

  private func stamp(_ resource: Resource, _ worker: StressWorker) {
    if resource.kind == .identifiers {
      for i in resource.address..<(resource.address + resource.size) {
        let before = owners[Int(i)].exchange(resource.stamp, ordering: .acquiringAndReleasing)
        worker.require(
          before == 0, "a part of an arena has two owners", i, found: before, expected: 0)
      }
      return
    }
    forEachWord(resource.address, resource.size) { at, offset in
      store(at, Self.word(resource, offset), worker)
    }
  }

  private static func word(_ resource: Resource, _ offset: UInt64) -> UInt64 {
    resource.stamp ^ offset &* 0xbf58_476d_1ce4_e5b9
  }

  private func check(_ resource: Resource, _ worker: StressWorker) {
    if resource.kind == .identifiers {
      for i in resource.address..<(resource.address + resource.size) {
        let before = owners[Int(i)].exchange(0, ordering: .acquiringAndReleasing)
        worker.require(
          before == resource.stamp, "a part of an arena has two owners", i, found: before,
          expected: resource.stamp
        )
      }
      return
    }
    forEachWord(resource.address, resource.size) { at, offset in
      let (word, expected) = (load(at, worker), Self.word(resource, offset))
      worker.require(word == expected, Self.invariant(resource.kind), at, found: word, expected: expected)
    }
  }

  private static func invariant(_ kind: Resource.Kind) -> StaticString {
    switch kind {
    case .object: "an object has changed"
    case .block: "a block of frames has changed"
    case .identifiers: "a part of an arena has two owners"
    case .wired: "a wired range has changed"
    case .stack: "a stack has changed"
    case .run: "a contiguous run has changed"
    case .mappedRun: "mapped contiguous memory has changed"
    }
  }

  /// Calls `body` with the address and offset of each word that is stamped: all of a small resource, some of each page
  /// of a large one, and the last.
  private func forEachWord(_ address: UInt64, _ size: UInt64, _ body: (UInt64, UInt64) -> Void) {
    let step: UInt64 = size <= 256 ? 8 : 512
    var offset: UInt64 = 0
    while offset + 8 <= size {
      body(address + offset, offset)
      offset += step
    }
    if step > 8 { body(address + (size - 8) & ~7, (size - 8) & ~7) }
  }

  private func isMapped(_ address: UInt64) -> Bool { address >= firstMapped }
  private func pointer(_ address: UInt64) -> UnsafeMutableRawPointer {
    UnsafeMutableRawPointer(bitPattern: UInt(address)).unsafelyUnwrapped
  }

  private func load(_ address: UInt64, _ worker: StressWorker) -> UInt64 {
    guard isMapped(address) else { return pointer(address).load(as: UInt64.self) }
    do throws(PagingError) {
      return try access.load(VirtualAddress(address))
    } catch {
      worker.require(false, "allocated memory can't be read", address, found: UInt64(error.rawValue))
      return 0
    }
  }
  private func store(_ address: UInt64, _ value: UInt64, _ worker: StressWorker) {
    guard isMapped(address) else { return pointer(address).storeBytes(of: value, as: UInt64.self) }
    do throws(PagingError) {
      try access.store(VirtualAddress(address), value)
    } catch {
      worker.require(
        false, "allocated memory can't be written to", address, found: UInt64(error.rawValue))
    }
  }

  // MARK: Freeing

  private func free(_ pointer: UnsafeMutablePointer<Resource>, _ worker: StressWorker) {
    let resource = pointer.pointee
    check(resource, worker)
    // A resource that has changed stays as it is.
    if worker.stress.hasFailed { return }
    memory.kmem.free(
      UnsafeMutableRawPointer(pointer), size: ByteCount(MemoryLayout<Resource>.size), type: type)
    let (address, size) = (VirtualAddress(resource.address), ByteCount(resource.size))
    switch resource.kind {
    case .object: memory.kmem.free(self.pointer(resource.address), size: size, type: type)
    case .block: memory.physical.free(frames(address, size))
    case .identifiers: arena.free(ArenaAddress(resource.address), ArenaSize(resource.size))
    case .wired: memory.space.freeWired(address, size.pagesRoundedUp)
    case .stack: memory.space.freeStack(KernelStack(bottom: address, count: size.pagesRoundedUp))
    case .run: memory.contiguous.releaseContig(frames(address, size))
    case .mappedRun: memory.contiguous.contigfree(address, size: size, type: type)
    }
    worker.record.pointee.tally.exchanged += 1
  }

  private func frames(_ address: VirtualAddress, _ size: ByteCount) -> FrameRun {
    FrameRun(
      first: memory.machine.directMap.physicalAddress(of: address).frame, count: size.pagesRoundedUp)
  }
}
