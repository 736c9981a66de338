// What every layer gives, made by one processor and given back by another: a table of slots, each the address of a
// thing or nothing. A turn makes a thing, or nothing, and exchanges it for what lies in some slot; what it got is
// its own, whoever made it.
//
// A thing is stamped all over: by the words of its memory, or, where it is a part of an identifier arena, by a
// table of who has each value. Two owners of one word find each other's stamps. Mapped memory is stamped and looked
// at through the processor's translations, all else through the direct map.

import ContiguousMemory
import Kmem
import KernelMemory
import KernelSpace
import MemoryPrimitives
import Paging
import PhysicalMemory
import Synchronization
import Vmem

/// The table, and where the things in it come from: a handle.
struct ExchangedThings {
  /// An object of kmem of its own.
  struct Thing {
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
  private static var arenaSize: Int { (Int(Arena.stateSize.rawValue) + 63) & ~63 }
  /// Bytes that it needs, aligned to 64 and zeroed.
  static var size: Int { (slotCount + identifiers) * 8 + arenaSize }

  init(
    _ memory: MemorySystem, _ access: WordAccess, in room: UnsafeMutableRawPointer
  ) throws(StressRefusal) {
    self.memory = memory
    self.access = access
    type = memory.kmem.type(named: Name("stress"))
    firstMapped = memory.space.layout.kernelBase.rawValue
    slots = room.bindMemory(to: Atomic<UInt>.self, capacity: Self.slotCount)
    for i in 0..<Self.slotCount { (slots + i).initialize(to: Atomic(0)) }
    let behind = room + Self.slotCount * 8
    owners = behind.bindMemory(to: Atomic<UInt64>.self, capacity: Self.identifiers)
    for i in 0..<Self.identifiers { (owners + i).initialize(to: Atomic(0)) }
    arena = Arena.create(
      in: behind + Self.identifiers * 8, name: Name("stress"), quantum: .byte, contents: .identifiers,
      tags: memory.space.tags, machine: memory.machine)
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
    // Somewhat more comes than goes, until memory or the table is full.
    let made = worker.oneIn(3) ? nil : make(worker)
    put(made, at: Int(worker.below(UInt64(Self.slotCount))), worker)
  }

  /// Empties the table.
  func giveBackAll(_ worker: StressWorker) {
    for slot in 0..<Self.slotCount { put(nil, at: slot, worker) }
  }

  private func put(_ thing: UnsafeMutablePointer<Thing>?, at slot: Int, _ worker: StressWorker) {
    let found = slots[slot].exchange(UInt(bitPattern: thing), ordering: .acquiringAndReleasing)
    worker.countOperation()
    if let found = UnsafeMutablePointer<Thing>(bitPattern: found) { giveBack(found, worker) }
  }

  // MARK: Making

  private func make(_ worker: StressWorker) -> UnsafeMutablePointer<Thing>? {
    let size = ByteCount(MemoryLayout<Thing>.size)
    guard let room = memory.kmem.alloc(size, type: type) else {
      worker.countRefusal()
      return nil
    }
    guard let thing = obtain(worker) else {
      memory.kmem.free(room, size: size, type: type)
      worker.countRefusal()
      return nil
    }
    let place = room.bindMemory(to: Thing.self, capacity: 1)
    place.initialize(to: thing)
    stamp(thing, worker)
    return place
  }

  /// What some layer gives; nil when it refuses.
  private func obtain(_ worker: StressWorker) -> Thing? {
    func thing(_ kind: Thing.Kind, _ address: UInt64, _ size: UInt64) -> Thing {
      Thing(kind: kind, address: address, size: size, stamp: worker.stamp())
    }
    let map = memory.machine.directMap
    switch worker.below(12) {
    case 0..<5:
      let size = 8 + worker.below(1 << (4 + worker.below(11)))
      return object(size, worker).map { thing(.object, $0, size) }
    case 5, 6:
      let order = Order(UInt8(worker.below(worker.oneIn(8) ? 6 : 2)))
      guard let frame = try? memory.physical.allocate(order, role: .wired) else { return nil }
      return thing(.block, map.virtualAddress(of: frame.address).rawValue, order.frames.bytes.rawValue)
    case 7:
      let count = 1 + worker.below(24)
      let policy: FitPolicy = worker.oneIn(3) ? .bestFit : .instantFit
      guard let first = try? arena.alloc(ArenaSize(count), policy: policy) else { return nil }
      return thing(.identifiers, first.rawValue, count)
    case 8, 9:
      let pages = PageCount(1 + worker.below(worker.oneIn(8) ? 40 : 6))
      let source: WiredArena = worker.oneIn(3) ? .kernel : worker.oneIn(2) ? .metadata : .heap
      guard let address = try? memory.space.allocateWired(pages, from: source) else { return nil }
      return thing(.wired, address.rawValue, pages.bytes.rawValue)
    case 10:
      guard let stack = try? memory.space.allocateStack(PageCount(1 + worker.below(4))) else { return nil }
      requireGuard(stack, worker)
      return thing(.stack, stack.bottom.rawValue, stack.count.bytes.rawValue)
    default:
      var request = ContiguousRequest(PageCount(1 + worker.below(1 << worker.below(6))))
      if worker.oneIn(2) { request.constraints.alignment = Alignment(Page.size << worker.below(5)) ?? .page }
      if worker.oneIn(3) { request.waitPolicy = .forbidden }
      if worker.oneIn(2) {
        guard let run = try? memory.contiguous.allocContig(request) else { return nil }
        return thing(
          .run, map.virtualAddress(of: run.first.address).rawValue, run.count.bytes.rawValue)
      }
      let bytes = request.count.bytes
      guard
        let range = try? memory.contiguous.contigmalloc(
          bytes, type: type, where: request.constraints, waitPolicy: request.waitPolicy)
      else { return nil }
      return thing(.mappedRun, range.address.rawValue, bytes.rawValue)
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
      worker.require(word == 0, "an object that was to be zero is not", at, found: word)
    }
    return address
  }

  /// Nobody may reach the page below a stack.
  private func requireGuard(_ stack: Stack, _ worker: StressWorker) {
    let word = try? access.load(stack.guardPage)
    worker.require(word == nil, "a guard page can be read", stack.guardPage.rawValue, found: word ?? 0)
  }

  // MARK: Stamps

  private func stamp(_ thing: Thing, _ worker: StressWorker) {
    if thing.kind == .identifiers {
      for i in thing.address..<(thing.address + thing.size) {
        let before = owners[Int(i)].exchange(thing.stamp, ordering: .acquiringAndReleasing)
        worker.require(
          before == 0, "a part of an arena has two owners", i, found: before, expected: 0)
      }
      return
    }
    forEachWord(thing.address, thing.size) { at, offset in store(at, Self.word(thing, offset), worker) }
  }

  private static func word(_ thing: Thing, _ offset: UInt64) -> UInt64 {
    thing.stamp ^ offset &* 0xbf58_476d_1ce4_e5b9
  }

  private func look(_ thing: Thing, _ worker: StressWorker) {
    if thing.kind == .identifiers {
      for i in thing.address..<(thing.address + thing.size) {
        let before = owners[Int(i)].exchange(0, ordering: .acquiringAndReleasing)
        worker.require(
          before == thing.stamp, "a part of an arena has two owners", i, found: before, expected: thing.stamp
        )
      }
      return
    }
    forEachWord(thing.address, thing.size) { at, offset in
      let (word, expected) = (load(at, worker), Self.word(thing, offset))
      worker.require(word == expected, Self.invariant(thing.kind), at, found: word, expected: expected)
    }
  }

  private static func invariant(_ kind: Thing.Kind) -> StaticString {
    switch kind {
    case .object: "an object is not what it was"
    case .block: "a block of frames is not what it was"
    case .identifiers: "a part of an arena has two owners"
    case .wired: "a wired range is not what it was"
    case .stack: "a stack is not what it was"
    case .run: "a contiguous run is not what it was"
    case .mappedRun: "mapped contiguous memory is not what it was"
    }
  }

  /// Calls `body` with the address and offset of each word that is stamped: all of a small thing, some of each page
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
      worker.require(false, "memory that is somebody's can't be read", address, found: UInt64(error.rawValue))
      return 0
    }
  }
  private func store(_ address: UInt64, _ value: UInt64, _ worker: StressWorker) {
    guard isMapped(address) else { return pointer(address).storeBytes(of: value, as: UInt64.self) }
    do throws(PagingError) {
      try access.store(VirtualAddress(address), value)
    } catch {
      worker.require(
        false, "memory that is somebody's can't be written to", address, found: UInt64(error.rawValue))
    }
  }

  // MARK: Giving back

  private func giveBack(_ place: UnsafeMutablePointer<Thing>, _ worker: StressWorker) {
    let thing = place.pointee
    look(thing, worker)
    // What is not what it was stays where it is.
    if worker.stress.isTroubled { return }
    memory.kmem.free(
      UnsafeMutableRawPointer(place), size: ByteCount(MemoryLayout<Thing>.size), type: type)
    let (address, size) = (VirtualAddress(thing.address), ByteCount(thing.size))
    switch thing.kind {
    case .object: memory.kmem.free(pointer(thing.address), size: size, type: type)
    case .block: memory.physical.free(frames(address, size))
    case .identifiers: arena.free(ArenaAddress(thing.address), ArenaSize(thing.size))
    case .wired: memory.space.freeWired(address, size.pagesRoundedUp)
    case .stack: memory.space.freeStack(Stack(bottom: address, count: size.pagesRoundedUp))
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
