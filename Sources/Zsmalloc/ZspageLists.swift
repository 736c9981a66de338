// The data under the allocator's lock: cells, descriptors and lists, and the steps on them that store and free.

import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// An object that has a slot; its zspage is pinned.
struct PlacedObject {
  let cell: UInt32
  let zspage: Zspage
  let slot: Int
}

/// Cells, descriptors of zspages, and the lists of these by class.
struct ZspageLists: ~Copyable {
  let physical: FrameAllocator
  let directMap: DirectMap
  let classes: ChainClasses
  /// The first zspage of each list, four a class.
  private let heads: UnsafeMutablePointer<UInt32>
  /// The counts of each class.
  let counts: UnsafeMutablePointer<ClassCounts>
  private(set) var cells: EntryTable
  private(set) var zspages: EntryTable
  let counters: UnsafeMutablePointer<ZspageCounters>

  /// Ends a list.
  static var none: UInt32 { 0 }

  /// Empty lists.
  init(
    physical: FrameAllocator, directMap: DirectMap, classes: ChainClasses,
    heads: UnsafeMutablePointer<UInt32>, counts: UnsafeMutablePointer<ClassCounts>, cells: EntryTable,
    zspages: EntryTable,
    counters: UnsafeMutablePointer<ZspageCounters>
  ) {
    (self.physical, self.directMap, self.classes) = (physical, directMap, classes)
    (self.heads, self.cells, self.zspages, self.counters) = (heads, cells, zspages, counters)
    self.counts = counts
    counts.initialize(repeating: ClassCounts(), count: ChainClasses.limit)
    heads.initialize(repeating: Self.none, count: ChainClasses.limit * FullnessGroup.listCount)
  }

  /// A zspage that is known to exist.
  @inline(__always) func zspage(_ number: UInt32) -> Zspage {
    guard let raw = zspages[number] else { preconditionFailure("a zspage's descriptor is missing") }
    return Zspage(raw: raw)
  }
  /// The cell with that index; nil where the table has no leaf.
  func cell(_ index: UInt32) -> Cell? { cells[index].map { Cell(raw: $0) } }

  // MARK: Store

  enum PlaceAnswer {
    case placed(PlacedObject)
    /// As many frames of each kind must be in the supply.
    case lacks(data: Int, tables: Int)
    case exceedsLimit
    /// There are as many objects as cells can be.
    case isFull
  }

  /// A slot for an object, and what it lacks.
  private struct Choice {
    /// `none` for a new zspage.
    var zspage = ZspageLists.none
    var slot = 0
    var missingPages = 1
  }

  /// Places an object of `length` bytes, or changes nothing and says which frames it lacks.
  mutating func place(_ length: Int, _ supply: inout ZspageSupply, limit: UInt64) -> PlaceAnswer {
    let number = classes.number(for: length)
    let choice = choose(number)
    guard var tables = cells.framesNeeded else { return .isFull }
    if choice.zspage == Self.none {
      guard let more = zspages.framesNeeded else { return .isFull }
      tables += more
    }
    let missing = choice.missingPages
    let more = UInt64(missing + tables)
    if limit > 0 && more > 0 && counters.pointee.frames + more > limit { return .exceedsLimit }
    if supply.data.count < missing || supply.tables.count < tables {
      return .lacks(data: missing, tables: tables)
    }
    let place = choice.zspage == Self.none ? addZspage(number, &supply) : choice.zspage
    let zspage = zspage(place)
    let index = cells.allocate(&supply.tables)
    occupy(choice.slot, of: zspage, place, for: index, &supply)
    publish(index, place, choice.slot)
    countTables()
    counters.pointee.objects.add()
    counters.pointee.bytes.add(UInt64(length))
    if number == classes.huge {
      counters.pointee.huge.add()
      counters.pointee.hugeEver.add()
    }
    let isPinned = zspage.tryPin()
    assert(isPinned, "readers are excluded without the lock")
    return .placed(PlacedObject(cell: index, zspage: zspage, slot: choice.slot))
  }

  /// Chooses a slot in the fullest zspage that has one.
  private func choose(_ number: Int) -> Choice {
    for group in stride(from: FullnessGroup.listCount - 1, through: 0, by: -1) {
      let first = heads[number * FullnessGroup.listCount + group]
      if first == Self.none { continue }
      let (slot, missing) = freeSlot(of: zspage(first))
      return Choice(zspage: first, slot: slot, missingPages: missing)
    }
    return Choice()
  }

  /// A free slot of a zspage that has one, if possible on pages that have frames: the first of a few that lacks none.
  func freeSlot(of zspage: Zspage) -> (slot: Int, missingPages: Int) {
    let shape = shape(of: zspage)
    var free = SlotSet(bits: SlotSet(first: Int(shape.slots)).bits & ~zspage.occupied.bits)
    var best = (slot: free.lowest, missingPages: Int.max)
    for _ in 0..<8 where !free.isEmpty {
      let slot = free.lowest
      free.remove(slot)
      var missing = 0
      for page in shape.pages(ofSlot: slot) where zspage.frame(page) == .none { missing += 1 }
      if missing < best.missingPages { best = (slot, missing) }
      if missing == 0 { break }
    }
    return best
  }

  @inline(__always) func shape(of zspage: Zspage) -> ChainClass { classes[zspage.number] }

  private mutating func addZspage(_ number: Int, _ supply: inout ZspageSupply) -> UInt32 {
    let place = zspages.allocate(&supply.tables)
    let zspage = zspage(place)
    zspage.initialize(class: number)
    zspage.group = .quarter
    link(zspage, place)
    return place
  }

  // MARK: Slots

  /// Gives a free slot to the object with cell `index`. `supply` has a frame for each page that lacks one.
  mutating func occupy(
    _ slot: Int, of zspage: Zspage, _ place: UInt32, for index: UInt32, _ supply: inout ZspageSupply
  ) {
    let shape = shape(of: zspage)
    for page in shape.pages(ofSlot: slot) where zspage.frame(page) == .none {
      enter(supply.data.pop(), as: page, of: zspage, place)
      counts[zspage.number].frames &+= 1
      counters.pointee.dataFrames.add()
    }
    var occupied = zspage.occupied
    occupied.insert(slot)
    zspage.occupied = occupied
    zspage.used += 1
    counts[zspage.number].objects &+= 1
    regroup(zspage, place, shape)
    setOwner(of: slot, in: zspage, shape, to: index)
  }

  /// Makes a cell name a slot, in which the object's bytes are.
  func publish(_ index: UInt32, _ place: UInt32, _ slot: Int) {
    guard let cell = cell(index) else { preconditionFailure("a cell is missing") }
    cell.set(place, slot)
  }

  /// Makes a frame a page of a zspage.
  private func enter(_ frame: FrameNumber, as page: Int, of zspage: Zspage, _ place: UInt32) {
    let record = physical.knownRecord(frame)
    record.owner = place
    record.aux = UInt32(page)
    record.index = 0
    zspage.setFrame(page, frame)
    zspage.heldPages += 1
  }

  /// Takes a slot from its object. Frames of pages that no other object touches go to `supply`; a zspage without
  /// objects ceases to be.
  mutating func vacate(_ slot: Int, of zspage: Zspage, _ place: UInt32, _ supply: inout ZspageSupply) {
    let shape = shape(of: zspage)
    var occupied = zspage.occupied
    occupied.remove(slot)
    zspage.occupied = occupied
    zspage.used -= 1
    for page in shape.pages(ofSlot: slot) where occupied.isDisjoint(with: shape.slots(touching: page)) {
      supply.freed.push(zspage.frame(page))
      zspage.setFrame(page, .none)
      zspage.heldPages -= 1
      counts[zspage.number].frames &-= 1
      counters.pointee.dataFrames.subtract()
    }
    counts[zspage.number].objects &-= 1
    guard zspage.used == 0 else { return regroup(zspage, place, shape) }
    unlink(zspage)
    zspage.sizeClass = nil
    _ = zspages.free(place, releasing: .onRequest)
  }

  /// The first bytes of a slot name the cell of its object.
  private func setOwner(of slot: Int, in zspage: Zspage, _ shape: ChainClass, to index: UInt32) {
    if shape.isHuge { return zspage.hugeHandle = index }
    let (page, offset) = shape.place(ofSlot: slot)
    (directMap.pointer(to: zspage.frame(page)) + offset).storeBytes(of: index, as: UInt32.self)
  }
  /// The cell of the object in an occupied slot.
  func owner(of slot: Int, in zspage: Zspage) -> UInt32 {
    let shape = shape(of: zspage)
    if shape.isHuge { return zspage.hugeHandle }
    let (page, offset) = shape.place(ofSlot: slot)
    return (directMap.pointer(to: zspage.frame(page)) + offset).loadUnaligned(as: UInt32.self)
  }

  // MARK: Free

  enum FreeAnswer { case freed, freedLast, notAllocated, wrongSize }

  /// Frees the object of a handle, or changes nothing.
  mutating func free(_ handle: ZspageHandle, _ supply: inout ZspageSupply) -> FreeAnswer {
    guard let cell = cell(handle.cell), let at = cell.place else { return .notAllocated }
    let place = Cell.zspage(at)
    let zspage = zspage(place)
    guard let number = zspage.sizeClass, fits(handle, number) else { return .wrongSize }
    vacate(Cell.slot(at), of: zspage, place, &supply)
    cell.clear()
    if let frame = cells.free(handle.cell, releasing: .atOnce) { supply.tables.push(frame) }
    countTables()
    counters.pointee.objects.subtract()
    counters.pointee.bytes.subtract(UInt64(handle.length))
    if number == classes.huge { counters.pointee.huge.subtract() }
    return cells.count == 0 ? .freedLast : .freed
  }

  /// Whether an object of the handle's length can be in a zspage of that class.
  @inline(__always) private func fits(_ handle: ZspageHandle, _ number: Int) -> Bool {
    handle.length > 0 && handle.length <= Int(Page.size) && classes.number(for: handle.length) <= number
  }

  /// Moves frames of the cells of an empty store to `supply`, and answers whether there may be more.
  mutating func releaseCells(_ supply: inout ZspageSupply) -> Bool {
    guard cells.count == 0 else { return false }
    defer { countTables() }
    while supply.tables.count < SpareFrames.capacity / 2 {
      guard let frame = cells.releaseFrame() else { return false }
      supply.tables.push(frame)
    }
    return true
  }

  /// Moves frames of descriptors that no zspage has to `supply`: readers may still look at them.
  mutating func releaseDescriptors(_ supply: inout ZspageSupply) {
    while supply.tables.count < SpareFrames.capacity / 2,
      let frame = zspages.count == 0 ? zspages.releaseFrame() : zspages.releaseEmptyLeaf()
    {
      supply.tables.push(frame)
    }
    countTables()
  }

  func countTables() {
    counters.pointee.tableFrames.set(UInt64(cells.frames + zspages.frames))
    let frames = counters.pointee.frames
    if frames > counters.pointee.peakFrames.value { counters.pointee.peakFrames.set(frames) }
  }

  // MARK: Lists

  /// The first zspage of a list; `none` for an empty one.
  func first(_ number: Int, _ group: Int) -> UInt32 { heads[number * FullnessGroup.listCount + group] }

  private func regroup(_ zspage: Zspage, _ place: UInt32, _ shape: ChainClass) {
    let group = FullnessGroup(used: zspage.used, of: Int(shape.slots))
    if group == zspage.group { return }
    unlink(zspage)
    zspage.group = group
    link(zspage, place)
  }

  private func head(_ zspage: Zspage) -> UnsafeMutablePointer<UInt32> {
    heads + ((zspage.number) * FullnessGroup.listCount + Int(zspage.group.rawValue))
  }
  /// Counts a zspage in its group, and links it into the group's list, if that has one.
  private func link(_ zspage: Zspage, _ place: UInt32) {
    counts[zspage.number].zspages[Int(zspage.group.rawValue)] &+= 1
    if zspage.group == .full { return }
    let head = head(zspage)
    zspage.previous = Self.none
    zspage.next = head.pointee
    if head.pointee != Self.none { self.zspage(head.pointee).previous = place }
    head.pointee = place
  }
  /// The reverse of `link`.
  private func unlink(_ zspage: Zspage) {
    counts[zspage.number].zspages[Int(zspage.group.rawValue)] &-= 1
    if zspage.group == .full { return }
    if zspage.previous == Self.none {
      head(zspage).pointee = zspage.next
    } else {
      self.zspage(zspage.previous).next = zspage.next
    }
    if zspage.next != Self.none { self.zspage(zspage.next).previous = zspage.previous }
  }
}
