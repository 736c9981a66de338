// Decompression of a block, in one pass over the input.
//
// Nearly all sequences take the fast loop: their bytes lie far enough from the ends of the buffers to be copied in
// whole steps. It leaves each other sequence to the reader, which begins at the token again and checks every byte.
// Only the reader knows that the input may continue in other memory, so the fast loop pays nothing for that.
//
// A page of a program takes about 14,000 instructions.

extension LZ4Block {
  /// Decodes the block in `source` into the start of `target`, and returns how many bytes it wrote.
  ///
  /// Any input is safe: no byte outside of the buffers is read or written. The two must not overlap. After an error
  /// all of `target` is undefined; otherwise the bytes behind the returned count are.
  package static func decompress(
    _ source: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer
  ) throws(LZ4Error) -> Int {
    try decompress(source, continuedBy: UnsafeRawBufferPointer(start: nil, count: 0), into: target)
  }

  /// Decodes the block that begins in `source` and continues in `rest`. Each of the two may be empty.
  ///
  /// So an object that straddles two pages is read in place. The answer, or the error, is that for the whole block in
  /// one buffer.
  @inline(never)
  package static func decompress(
    _ source: UnsafeRawBufferPointer, continuedBy rest: UnsafeRawBufferPointer,
    into target: UnsafeMutableRawBufferPointer
  ) throws(LZ4Error) -> Int {
    let output = LZ4Output(LZ4Target(target), capacity: target.count)
    var reader = LZ4Reader(source, continuedBy: rest)
    var written = 0
    repeat {
      written = try decodeFast(&reader, into: output, after: written)
    } while try reader.decodeSequence(into: output, &written)
    return written
  }

  /// Decodes sequences in the middle of both buffers, and returns how many bytes are written then.
  @inline(always) private static func decodeFast(
    _ reader: inout LZ4Reader, into output: LZ4Output, after start: Int
  ) throws(LZ4Error) -> Int {
    let input = reader.source
    let end = reader.end
    let target = output.target
    // A token, two steps of literals and, behind at most 14 of them, a distance.
    let lastFastInput = end &- 17
    // At most 14 literals, and a match of at most 18 bytes.
    let lastFastOutput = output.capacity &- 32
    var at = reader.at
    var written = start
    while at <= lastFastInput, written <= lastFastOutput {
      let token = Int(input.byte(at: at))
      var next = at &+ 1
      var literals = token &>> 4
      if literals != fullField {
        target.store(input.eight(at: next), at: written)
        target.store(input.eight(at: next &+ 8), at: written &+ 8)
      } else {
        guard addExtension(&literals, from: input, &next, end) else { break }
        guard literals &+ 7 <= end &- next, literals &+ 18 <= output.capacity &- written else { break }
        target.copyCoarsely(literals, from: input, at: next, to: written)
      }
      next &+= literals
      let place = written &+ literals
      let distance = Int(input.two(at: next))
      next &+= 2
      guard output.reaches(back: distance, from: place) else { throw .wrongDistance }
      let origin = place &- distance
      var length = token & fullField
      if length != fullField, distance >= 8 {
        target.store(target.written.eight(at: origin), at: place)
        target.store(target.written.eight(at: origin &+ 8), at: place &+ 8)
        target.store(target.written.two(at: origin &+ 16), at: place &+ 16)
        length &+= shortestMatch
      } else {
        if length == fullField { guard addExtension(&length, from: input, &next, end) else { break } }
        length &+= shortestMatch
        guard length &+ 7 <= output.capacity &- place else { break }
        target.repeatCoarsely(length, distance: distance, to: place)
      }
      at = next
      written = place &+ length
    }
    reader.at = at
    return written
  }

  /// Adds the bytes that continue a full field. Returns false if they do not end before `end`.
  @inline(always) private static func addExtension(
    _ value: inout Int, from input: LZ4Source, _ at: inout Int, _ end: Int
  ) -> Bool {
    while at < end {
      let more = input.byte(at: at)
      at &+= 1
      value &+= Int(more)
      if more != 255 { return true }
    }
    return false
  }
}
