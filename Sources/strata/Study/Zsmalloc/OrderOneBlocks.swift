// A model of what linux-mm proposed in place of chains: blocks of two contiguous pages, cut into slots.
//
// The classes are those of chains of at most two pages, but the pages of a block lie side by side. So an object has
// one address, and needs neither a handle nor a header. In return nothing can move it, and there is no compaction.
// Where memory is fragmented, a block of two pages may not be free.
//
// SOURCES
//   D. Hansen, "Re: [PATCH 1/5] staging: zsmalloc: zsmalloc memory allocation library", linux-mm, 8 February 2012.

import MemoryPrimitives

final class OrderOneBlocks: ModelLayout {
  private final class Block {
    let number: Int
    let first: FrameNumber
    var objects: [Int?]
    var used = 0
    init(_ number: Int, _ first: FrameNumber, slots: Int) {
      (self.number, self.first) = (number, first)
      objects = Array(repeating: nil, count: slots)
    }
  }

  private let supply: FrameSupply
  let table = LinuxClassTable(longestChain: 2, .percentage, header: 0)
  /// The blocks of each class that have a free slot.
  private var partial: [[Block]]
  private var places: [(block: Block, slot: Int, size: Int)?] = []
  private var dataFrames: UInt64 = 0

  init(_ supply: FrameSupply) {
    self.supply = supply
    partial = Array(repeating: [], count: table.classes.count)
  }

  var held: HeldFrames { HeldFrames(data: dataFrames, tables: 0, headers: 0) }

  func store(_ size: Int) -> Int? {
    let number = table.number(for: size)
    guard let block = partial[number].max(by: { $0.used < $1.used }) ?? addBlock(number),
      let slot = block.objects.firstIndex(of: nil)
    else { return nil }
    block.objects[slot] = places.count
    block.used += 1
    if block.used == block.objects.count { partial[number].removeAll { $0 === block } }
    places.append((block, slot, size))
    return places.count - 1
  }

  func free(_ object: Int) {
    guard let (block, slot, _) = places[object] else { return }
    places[object] = nil
    if block.used == block.objects.count { partial[block.number].append(block) }
    block.objects[slot] = nil
    block.used -= 1
    guard block.used == 0 else { return }
    partial[block.number].removeAll { $0 === block }
    let pages = table.classes[block.number].pages
    supply.free(block.first, order: UInt8(pages - 1))
    dataFrames -= UInt64(pages)
  }

  func parts(of object: Int) -> [ObjectPart] {
    guard let (block, slot, size) = places[object] else { return [] }
    let one = table.classes[block.number]
    let frames = (0..<one.pages).map { block.first + PageCount(UInt64($0)) }
    return ObjectPart.parts(from: slot * one.size, count: size, in: frames)
  }

  private func addBlock(_ number: Int) -> Block? {
    let one = table.classes[number]
    guard let first = supply.allocate(order: UInt8(one.pages - 1)) else { return nil }
    let block = Block(number, first, slots: one.slots)
    dataFrames += UInt64(one.pages)
    partial[number].append(block)
    return block
  }
}
