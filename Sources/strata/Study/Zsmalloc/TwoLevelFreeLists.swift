// A model of xvmalloc, the allocator before zsmalloc: free blocks inside single pages, in lists by size.
//
// A block has a header of 8 bytes and a size that is a multiple of 8, at least 32. Two levels of bitmaps find the
// shortest list with blocks that are long enough, in constant time; the model walks the lists instead. The rest of a
// block becomes a block of its own, which waits outside of the lists if it is shorter than 32. A freed block
// coalesces with its free neighbours. An object of more than 4088 bytes has a page of its own, as in ramzswap and
// zram.
//
// SOURCES
//   N. Gupta, drivers/staging/zram/xvmalloc.c of Linux 3.2.

import MemoryPrimitives

final class TwoLevelFreeLists: ModelLayout {
  private static let (header, shortest, page) = (8, 32, Int(Page.size))
  private static let longest = page - header

  private struct Block {
    var start: Int
    /// Bytes behind the header.
    var size: Int
    /// Its object; nil for a free block.
    var object: Int?
  }

  private struct CutPage {
    var frame: FrameNumber
    var blocks: [Block]
  }

  private struct Place: Equatable {
    var page: Int
    var start: Int
  }

  private let supply: FrameSupply
  private var pages: [CutPage?] = []
  private var unused: [Int] = []
  private var objects: [(place: Place, size: Int)?] = []
  /// Free blocks by their size in units of 8 bytes.
  private var lists: [[Place]] = Array(repeating: [], count: page / 8)
  private var (dataFrames, headers): (UInt64, UInt64) = (0, 0)

  init(_ supply: FrameSupply) { self.supply = supply }

  var held: HeldFrames { HeldFrames(data: dataFrames, tables: 0, headers: headers) }

  func store(_ size: Int) -> Int? {
    let object = objects.count
    if size > Self.longest {
      guard let page = addPage(Block(start: -Self.header, size: Self.page, object: object)) else {
        return nil
      }
      objects.append((Place(page: page, start: -Self.header), size))
      return object
    }
    let rounded = max(Self.shortest, (size + 7) & ~7)
    guard let place = take(rounded) else { return nil }
    split(place, at: rounded, for: object)
    objects.append((place, size))
    headers += UInt64(Self.header)
    return object
  }

  func free(_ object: Int) {
    guard let (place, size) = objects[object], var page = pages[place.page],
      var index = page.blocks.firstIndex(where: { $0.start == place.start })
    else { return }
    objects[object] = nil
    if size <= Self.longest { headers -= UInt64(Self.header) }
    page.blocks[index].object = nil
    if index + 1 < page.blocks.count, page.blocks[index + 1].object == nil { join(index, &page, place.page) }
    if index > 0, page.blocks[index - 1].object == nil {
      index -= 1
      removeFromList(page.blocks[index], place.page)
      join(index, &page, place.page)
    }
    pages[place.page] = page
    if page.blocks.count > 1 { return enter(page.blocks[index], place.page) }
    supply.free(page.frame)
    pages[place.page] = nil
    unused.append(place.page)
    dataFrames -= 1
  }

  func parts(of object: Int) -> [ObjectPart] {
    guard let (place, size) = objects[object], let page = pages[place.page] else { return [] }
    let start = max(0, place.start)
    return [ObjectPart(frame: page.frame, bytes: start..<(place.start + Self.header + size))]
  }

  // MARK: Blocks

  /// Removes a free block of `size` bytes or more from its list, or from a new page.
  private func take(_ size: Int) -> Place? {
    for units in (size / 8)..<lists.count {
      if let place = lists[units].popLast() { return place }
    }
    guard let page = addPage(Block(start: 0, size: Self.longest)) else { return nil }
    return Place(page: page, start: 0)
  }

  /// Gives the first bytes of a free block to an object.
  private func split(_ place: Place, at size: Int, for object: Int) {
    guard var page = pages[place.page], let index = page.blocks.firstIndex(where: { $0.start == place.start })
    else { preconditionFailure("a listed block is missing") }
    let left = page.blocks[index].size - size
    page.blocks[index].object = object
    page.blocks[index].size = size
    if left > 0 {
      let rest = Block(start: place.start + Self.header + size, size: left - Self.header)
      page.blocks.insert(rest, at: index + 1)
      enter(rest, place.page)
    }
    pages[place.page] = page
  }

  /// Joins a block with the free one behind it, which leaves its list.
  private func join(_ index: Int, _ page: inout CutPage, _ number: Int) {
    let next = page.blocks.remove(at: index + 1)
    removeFromList(next, number)
    page.blocks[index].size += Self.header + next.size
  }

  private func enter(_ block: Block, _ page: Int) {
    if block.size >= Self.shortest { lists[block.size / 8].append(Place(page: page, start: block.start)) }
  }

  private func removeFromList(_ block: Block, _ page: Int) {
    guard block.size >= Self.shortest else { return }
    lists[block.size / 8].removeAll { $0 == Place(page: page, start: block.start) }
  }

  private func addPage(_ block: Block) -> Int? {
    guard let frame = supply.allocate() else { return nil }
    dataFrames += 1
    let page = CutPage(frame: frame, blocks: [block])
    if let number = unused.popLast() {
      pages[number] = page
      return number
    }
    pages.append(page)
    return pages.count - 1
  }
}
