// A model of Linux' zsmalloc: chains of single pages that are allocated as a whole.
//
// An object has 8 bytes in front of it in its slot, unless the slot is a page, and an 8-byte cell in a slab cache:
// the handle is the address of that cell, so an object can move. A chain has a record of 56 bytes in another slab
// cache. Page descriptors are not counted, in no layout.
//
// A store takes the fullest group of chains that have a free slot. Compaction moves objects of the emptiest chain to
// the fullest, until the free slots of a class are fewer than a chain has.
//
// SOURCES
//   Linux, mm/zsmalloc.c: 6.1 has four groups by fullness, 6.4 twelve. Compaction leaves the same in both, though
//   6.1 looks for targets of one source, and 6.4 for sources of one target.

import MemoryPrimitives

final class LinuxChains: ModelLayout {
  struct Edition: Sendable {
    var longestChain: Int
    var rule: LinuxClassTable.Rule
    /// The group of a chain with `used` of `slots` slots in use; a higher one is used first.
    var group: @Sendable (_ used: Int, _ slots: Int) -> Int

    /// Chains of up to four pages.
    static let linux61 = Edition(longestChain: 4, rule: .percentage) { $0 * 4 <= $1 * 3 ? 0 : 1 }
    /// Chains of up to eight pages.
    static let linux63 = Edition(longestChain: 8, rule: .bytes) { $0 * 10 / $1 }
  }

  private final class Chain {
    let number: Int
    let frames: [FrameNumber]
    let record: Int
    var objects: [Int?]
    var used = 0
    init(_ number: Int, _ frames: [FrameNumber], record: Int, slots: Int) {
      (self.number, self.frames, self.record) = (number, frames, record)
      objects = Array(repeating: nil, count: slots)
    }
  }

  private struct Place {
    var chain: Chain
    var slot: Int
    var size: Int
    var handle: Int
  }

  private static let headerSize = 8
  private let edition: Edition
  private let supply: FrameSupply
  let table: LinuxClassTable
  private var handles: RecordSlabs
  private var records: RecordSlabs
  /// The chains of each class that have a free slot, and the number of all.
  private var partial: [[Chain]]
  private var chains: [Int]
  private var used: [Int]
  private var places: [Place?] = []
  private var (dataFrames, headers): (UInt64, UInt64) = (0, 0)

  init(_ edition: Edition, _ supply: FrameSupply) {
    (self.edition, self.supply) = (edition, supply)
    table = LinuxClassTable(longestChain: edition.longestChain, edition.rule, header: Self.headerSize)
    handles = RecordSlabs(bytes: 8, supply)
    records = RecordSlabs(bytes: 56, supply)
    partial = Array(repeating: [], count: table.classes.count)
    chains = Array(repeating: 0, count: table.classes.count)
    used = chains
  }

  var canCompact: Bool { true }
  var held: HeldFrames {
    HeldFrames(data: dataFrames, tables: handles.frames + records.frames, headers: headers)
  }

  func store(_ size: Int) -> Int? {
    let number = table.number(for: size)
    guard let handle = handles.allocate() else { return nil }
    guard let chain = fullest(number) ?? addChain(number) else {
      handles.free(handle)
      return nil
    }
    places.append(Place(chain: chain, slot: 0, size: size, handle: handle))
    put(places.count - 1, into: chain)
    used[number] += 1
    if !table.classes[number].isHuge { headers += UInt64(Self.headerSize) }
    return places.count - 1
  }

  func free(_ object: Int) {
    guard let place = places[object] else { return }
    places[object] = nil
    handles.free(place.handle)
    let number = place.chain.number
    used[number] -= 1
    if !table.classes[number].isHuge { headers -= UInt64(Self.headerSize) }
    vacate(place)
  }

  func compact() {
    for number in table.classes.indices {
      let slots = table.classes[number].slots
      while chains[number] * slots - used[number] >= slots {
        guard let target = partial[number].max(by: { $0.used < $1.used }),
          let source = partial[number].filter({ $0 !== target }).min(by: { $0.used < $1.used })
        else { break }
        for case let object? in source.objects where target.used < slots {
          guard let place = places[object] else { continue }
          put(object, into: target)
          vacate(place)
        }
      }
    }
  }

  func parts(of object: Int) -> [ObjectPart] {
    guard let place = places[object] else { return [] }
    let one = table.classes[place.chain.number]
    return ObjectPart.parts(
      from: place.slot * one.size, count: place.size + (one.isHuge ? 0 : Self.headerSize),
      in: place.chain.frames)
  }

  // MARK: Chains

  /// A chain of the fullest group that has a free slot.
  private func fullest(_ number: Int) -> Chain? {
    let slots = table.classes[number].slots
    return partial[number].max { edition.group($0.used, slots) < edition.group($1.used, slots) }
  }

  /// A new chain with all its pages; nil, and no change, when a frame is missing.
  private func addChain(_ number: Int) -> Chain? {
    guard let record = records.allocate() else { return nil }
    var frames: [FrameNumber] = []
    while frames.count < table.classes[number].pages {
      guard let frame = supply.allocate() else {
        for frame in frames { supply.free(frame) }
        records.free(record)
        return nil
      }
      frames.append(frame)
    }
    let chain = Chain(number, frames, record: record, slots: table.classes[number].slots)
    dataFrames += UInt64(frames.count)
    chains[number] += 1
    partial[number].append(chain)
    return chain
  }

  private func put(_ object: Int, into chain: Chain) {
    guard let slot = chain.objects.firstIndex(of: nil) else { preconditionFailure("the chain is full") }
    chain.objects[slot] = object
    chain.used += 1
    places[object]?.chain = chain
    places[object]?.slot = slot
    if chain.used == chain.objects.count { partial[chain.number].removeAll { $0 === chain } }
  }

  /// Empties the slot of an object, and frees a chain that has become empty.
  private func vacate(_ place: Place) {
    let chain = place.chain
    if chain.used == chain.objects.count { partial[chain.number].append(chain) }
    chain.objects[place.slot] = nil
    chain.used -= 1
    guard chain.used == 0 else { return }
    partial[chain.number].removeAll { $0 === chain }
    for frame in chain.frames { supply.free(frame) }
    records.free(chain.record)
    dataFrames -= UInt64(chain.frames.count)
    chains[chain.number] -= 1
  }
}
